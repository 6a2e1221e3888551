"use strict";
/* The table of runs: hundreds of rows made here take hundredths of a second, as components seconds. */
(function () {
  const NUMBERS = new Set(["steps", "layers", "joins", "last loss", "age"]);
  const scripts = window.dash_clientside.gradientflow;

  /** An element with words, which are never read as markup. */
  function make(tag, text, attributes) {
    const made = document.createElement(tag);
    if (text != null) made.textContent = text;
    Object.entries(attributes || {}).forEach(([name, value]) => made.setAttribute(name, value));
    return made;
  }

  function cell(column, text) {
    return make("td", text, NUMBERS.has(column) ? { class: "number" } : {});
  }

  function mark(row) {
    const made = make("td");
    if (row.href) {
      const what = { class: "mark", "aria-pressed": "false", "aria-label": "compare " + row.name };
      const button = make("button", "compare", { ...what, type: "button", "data-run": row.run });
      made.append(button);
    }
    return made;
  }

  function name(row) {
    const made = make("th", row.href ? null : row.name, { scope: "row", title: row.name });
    if (row.href) made.append(make("a", row.name, { href: row.href }));
    return made;
  }

  function line(columns, row) {
    const made = make("tr", null, { class: "is-" + row.status });
    const status = make("td");
    status.append(make("span", row.status, { class: "status" }));
    const rest = row.cells.map((text, at) => cell(columns[at + 3], text));
    made.append(mark(row), name(row), status, ...rest);
    return made;
  }

  function table(data) {
    const made = make("table", null, { class: "runs" });
    const head = make("tr");
    data.columns.forEach((column) => {
      const attributes = NUMBERS.has(column) ? { class: "number" } : {};
      if (data.meanings[column]) attributes.title = data.meanings[column];
      head.append(make("th", column, { scope: "col", ...attributes }));
    });
    const top = make("thead");
    top.append(head);
    const body = make("tbody");
    body.append(...data.rows.map((row) => line(data.columns, row)));
    made.append(make("caption", "recorded runs, the newest first", { class: "unseen" }), top, body);
    return made;
  }

  /** Put new rows in place; where a row had the focus, its run keeps it. */
  scripts.runRows = function (data) {
    const place = document.getElementById("run-table");
    if (place && data) {
      const held = place.contains(document.activeElement) ? document.activeElement : null;
      const label = held && held.closest("tr").querySelector("th").textContent;
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
