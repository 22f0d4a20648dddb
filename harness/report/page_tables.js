"use strict";

// Tables are sorted by a click on a column's head: up, down, and back to the report's own order.
// A row that stands under a heading, such as "64 tokens", bears it while the table is sorted.
(() => {
  const LAST = new Set(["", "–", "not measured"]);
  const words = new Intl.Collator("en", { numeric: true });

  // A cell's rank: numbers, then words, then what was not measured; it stays so in both directions.
  const value = (row, column) => {
    const text = (row.cells[column]?.textContent ?? "").trim();
    if (LAST.has(text)) return [2, 0];
    const number = /^[≤≥<>]?\s*([+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?![\p{L}\d_])/u.exec(text);
    return number ? [0, Number(number[1].replace("−", "-").replaceAll(",", ""))] : [1, text];
  };

  const compare = (one, other, down) => {
    if (one[0] !== other[0]) return one[0] - other[0];
    const order = one[0] === 1 ? words.compare(one[1], other[1]) : one[1] - other[1];
    return down ? -order : order;
  };

  for (const table of document.querySelectorAll("main table")) {
    const body = table.tBodies[0];
    if (!body) continue;
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const isHeading = (row) => heads.length > 1 && [...row.cells].slice(1).every((cell) => !cell.textContent.trim());
    const rows = [];
    let heading = "";
    for (const row of original) {
      if (isHeading(row)) {
        row.className = "heading";
        heading = row.cells[0].textContent.trim();
      } else {
        rows.push([row, heading]);
      }
    }

    const show = (column, direction) => {
      heads.forEach((head, index) => {
        if (index === column && direction) head.setAttribute("aria-sort", direction);
        else head.removeAttribute("aria-sort");
      });
      for (const [row] of rows) row.querySelector(".under")?.remove();
      if (!direction) {
        body.replaceChildren(...original);
        return;
      }
      const ranked = rows.map(([row, under]) => [value(row, column), row, under]);
      ranked.sort((one, other) => compare(one[0], other[0], direction === "descending"));
      body.replaceChildren(...ranked.map(([, row]) => row));
      for (const [, row, under] of ranked) {
        if (!under) continue;
        const label = document.createElement("span");
        label.className = "under";
        label.textContent = ` ${under}`;
        row.cells[0].append(label);
      }
    };

    const next = { none: "ascending", ascending: "descending", descending: "" };
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => show(column, next[head.getAttribute("aria-sort") ?? "none"]));
    });
  }
})();
