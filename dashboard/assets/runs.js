"use strict";
/* The table of runs: hundreds of rows made here take hundredths of a second, as components seconds. */
(function () {
  const scripts = window.dash_clientside.gradientflow, shared = window.gradientflow;

  /** An element with words, which are never read as markup. */
  function make(tag, text, attributes) {
    const made = document.createElement(tag);
    if (text != null) made.textContent = text;
    Object.entries(attributes || {}).forEach(([name, value]) => made.setAttribute(name, value));
    return made;
  }

  const WORDS = new Set(["tags", "notes"]);

  function cell(column, numbers, text) {
    const kind = numbers.has(column) ? "number" : WORDS.has(column) ? "words" : "";
    return make("td", text, kind ? { class: kind } : {});
  }

  function mark(row) {
    const made = make("td");
    if (row.href) {
      const what = { class: "mark", type: "checkbox", "aria-label": "compare " + row.name };
      made.append(make("input", null, { ...what, "data-run": row.run }));
    }
    return made;
  }

  function name(row) {
    const made = make("th", row.href ? null : row.name, { scope: "row", title: row.name });
    if (row.href) made.append(make("a", row.name, { href: row.href }));
    return made;
  }

  function line(columns, numbers, row) {
    const made = make("tr", null, { class: "is-" + row.status });
    const status = make("td");
    status.append(make("span", row.status, { class: "status" }));
    const rest = row.cells.map((text, at) => cell(columns[at + 3], numbers, text));
    const verdict = rest[columns.indexOf("verdict") - 3];
    verdict.replaceChildren(make("span", verdict.textContent, { class: "verdict", "data-word": verdict.textContent }));
    made.append(mark(row), name(row), status, ...rest);
    return made;
  }

  const asked = () => shared.params().get("sort") || "";

  /** The rows in the order that the address asks for; what has no value comes last. */
  function sorted(data) {
    const name = asked().replace(/^-/, ""), sign = asked().startsWith("-") ? -1 : 1;
    const at = data.columns.indexOf(name) - 3;
    if (at < -2) return data.rows;
    const text = (row) => (at === -2 ? row.name : at === -1 ? row.status : row.cells[at]);
    const value = (row) => (at < 0 ? null : row.ordered[at]);
    return [...data.rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a != null && b != null) return sign * (a - b);
      if (a != null || b != null) return a != null ? -1 : 1;
      return sign * String(text(one)).localeCompare(String(text(other)), "en", { numeric: true });
    });
  }

  /** A column's name is a button: once from the smallest, once from the largest, once as it was. */
  function head(column, data, attributes) {
    const made = make("th", column === "compare" ? column : null, { scope: "col", ...attributes });
    if (column === "compare") return made;
    const isThis = asked().replace(/^-/, "") === column, isDown = asked().startsWith("-");
    if (isThis) made.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const button = make("button", column + (isThis ? (isDown ? " ↓" : " ↑") : ""), { type: "button", class: "sort" });
    button.addEventListener("click", () => {
      const found = shared.params();
      if (!isThis) found.set("sort", column);
      else if (!isDown) found.set("sort", "-" + column);
      else found.delete("sort");
      shared.replace(found);
      scripts.runRows(data);
    });
    made.append(button);
    return made;
  }

  function table(data) {
    const made = make("table", null, { class: "runs" });
    const heads = make("tr");
    const numbers = new Set(data.numbers);
    data.columns.forEach((column) => {
      const attributes = numbers.has(column) ? { class: "number" } : {};
      if (data.meanings[column]) attributes.title = data.meanings[column];
      heads.append(head(column, data, attributes));
    });
    const top = make("thead");
    top.append(heads);
    const body = make("tbody");
    body.append(...sorted(data).map((row) => line(data.columns, numbers, row)));
    made.append(make("caption", "recorded runs, the newest first", { class: "unseen" }), top, body);
    return made;
  }

  /** Put new rows in place; where a row had the focus, its run keeps it. */
  scripts.runRows = function (data) {
    const place = document.getElementById("run-table");
    if (place && data) {
      const held = place.contains(document.activeElement) ? document.activeElement : null;
      const label = held && held.closest("tr") && held.closest("tr").querySelector("th").textContent;
      const tag = held && held.tagName;
      place.replaceChildren(table(data));
      const same = [...place.querySelectorAll("tbody tr")].find(
        (row) => row.querySelector("th").textContent === label,
      );
      const again = same && same.querySelector(tag);
      if (again) again.focus();
    }
    return window.dash_clientside.no_update;
  };

  /* A link of the table goes to its page as the other links do, without loading it again. */
  document.addEventListener("click", (event) => {
    const link = event.target.closest("#run-table a");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    window.gradientflow.go(link.getAttribute("href"));
    window.scrollTo(0, 0);
  });
})();
