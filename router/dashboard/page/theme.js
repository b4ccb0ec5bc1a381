// Light, dark, or what the system says; remembered in this browser.

import { byId } from "./dom.js";

const NAME = "pdserve-theme";
const NEXT = { auto: "light", light: "dark", dark: "auto" };
const SIGN = { auto: "◐", light: "☀", dark: "☾" };

export function startTheme() {
  const button = byId("theme");
  let theme = localStorage.getItem(NAME);
  if (!(theme in NEXT)) theme = "auto";
  const show = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = SIGN[theme];
    const said = theme === "auto" ? "as the system" : theme;
    button.setAttribute("aria-label", `Colours: ${said}. Change to ${NEXT[theme] === "auto" ? "as the system" : NEXT[theme]}`);
    button.title = `Colours: ${said}`;
  };
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    localStorage.setItem(NAME, theme);
    show();
  });
  show();
}
