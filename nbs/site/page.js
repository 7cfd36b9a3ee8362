// What every page gets when it opens; without JavaScript it is whole without them.

// Quarto marks the first link of the bar that the sidebar has too, on every page. Only this page's own is right.
export function markThisPage(bar, address) {
  const pathOf = (link) => new URL(link, address).pathname.replace(/index\.html$/, "");
  for (const link of bar.querySelectorAll("a.nav-link[href]")) {
    const page = /^[^#]/.test(link.getAttribute("href"));  // not a button or a menu
    const here = page && pathOf(link.href) === pathOf(address);
    link.classList.toggle("active", here);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// On a narrow screen the list of sections is hidden: a folded copy of it stands below the title.
export function foldContents(contents, title) {
  const folded = document.createElement("details");
  folded.className = "on-this-page";
  folded.innerHTML = "<summary>On this page</summary>";
  const list = contents.querySelector("ul").cloneNode(true);
  for (const part of [list, ...list.querySelectorAll("*")]) {
    part.removeAttribute("id");
    part.removeAttribute("class");
  }
  for (const link of list.querySelectorAll("a")) link.addEventListener("click", () => { folded.open = false; });
  folded.append(list);
  title.after(folded);
  return folded;
}

const bar = document.querySelector("#quarto-header");
if (bar) markThisPage(bar, location.href);
const contents = document.querySelector("nav#TOC, nav[role='doc-toc']");
const title = document.querySelector("#title-block-header");
if (contents?.querySelector("ul") && title) foldContents(contents, title);

// What scrolls within itself can be reached and scrolled by keyboard, and fades out where it goes on.
export function reachByKeyboard(main) {
  for (const part of main.querySelectorAll("table, .cell-output-display, .katex-display, pre")) {
    const hidden = () => part.scrollWidth - part.clientWidth - part.scrollLeft;  // pixels beyond the right edge
    if (part.scrollWidth > part.clientWidth + 1) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
    part.onscroll = () => part.classList.toggle("goes-on", hidden() > 1);
    part.onscroll();
  }
}

// A line may end at a hyphen, but not within an option such as --image-dir.
export function keepOptionsWhole(main) {
  for (const code of main.querySelectorAll("code:not(pre code)")) {
    const parts = code.textContent.split(/(--[a-z][a-z-]*)/);  // every second one is an option
    if (code.children.length || parts.length === 1) continue;
    code.replaceChildren(...parts.map((text, i) => {
      if (i % 2 === 0) return text;
      const option = document.createElement("span");
      option.className = "option";
      option.textContent = text;
      return option;
    }));
  }
}

const main = document.querySelector("main");
keepOptionsWhole(main);
reachByKeyboard(main);
addEventListener("resize", () => reachByKeyboard(main));
