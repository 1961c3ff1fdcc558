// Formulas, also after a page was loaded without a reload of the browser.
document.addEventListener("DOMContentLoaded", () =>
  renderMathInElement(document.body, { delimiters: [
    { left: "\\(", right: "\\)", display: false },
    { left: "\\[", right: "\\]", display: true },
  ] }));
