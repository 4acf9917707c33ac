// What every page of the application does beside htmx.
import "./notices.js";
import "./turns.js";
import "./scroll.js";
import "./composer.js";
import "./keep.js";
import "./times.js";
import "./title.js";
import "./copy.js";
import "./diagrams.js";
import "./editor.js";
import "./holder.js";
import "./keys.js";
import "./panels.js";
