// The live page: its socket, and what has to be there before htmx opens it.
import "./frames.js";
import "./inbox.js";
import "./cursor.js";
import "./connection.js";
