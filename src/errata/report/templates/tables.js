"use strict";
(() => {
  // Tables: the first click of a column brings its better values to the top, the next ones turn it around.
  const collator = new Intl.Collator(undefined, { numeric: true });
  for (const button of document.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), table = button.closest("table"), column = Number(button.dataset.column);
      const first = button.dataset.first || "ascending";
      const now = head.getAttribute("aria-sort");
      const order = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
      for (const other of table.querySelectorAll("thead [aria-sort]")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const body = table.querySelector("tbody.methods");
      const key = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const left = key(a), right = key(b);
        if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);
        return sign * (button.dataset.as === "text" ? collator.compare(left, right) : Number(left) - Number(right));
      });
      body.append(...rows);
    });
  }

  // Legends: a method is shown or hidden in all charts at once.
  for (const button of document.querySelectorAll("button.toggle")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true", style = button.dataset.style;
      for (const twin of document.querySelectorAll(`button.toggle[data-style="${style}"]`)) {
        twin.setAttribute("aria-pressed", String(shown));
      }
      for (const curve of document.querySelectorAll(`.curve[data-style="${style}"]`)) {
        curve.classList.toggle("off", !shown);
      }
    });
  }
})();
