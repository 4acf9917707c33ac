// What the browser keeps for this page. It may be full or switched off; the page goes on without.
const kept = (area) => ({
  get(key) {
    try {
      return window[area].getItem(key);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      if (value) window[area].setItem(key, value);
      else window[area].removeItem(key);
    } catch {
      // A draft is lost with the page then, and nothing else.
    }
  },
});

export const lasting = kept("localStorage");
export const passing = kept("sessionStorage");
