"use strict";
(() => {
  const PAGE = 50;

  // The list of facts: one page of it is in the document at a time.
  const { strings, cells, outcomes, entries } = JSON.parse(document.getElementById("data").textContent);
  const text = (place) => (place < 0 ? "" : strings[place]);
  const HEADS = ["before", "right after", "after"];
  const KINDS = { "recalled": "good", "kept": "good", "recalled later": "good", "gained": "good", "not recalled": "bad", "lost": "bad", "forgotten": "doubt" };
  const words = document.getElementById("words"), method = document.getElementById("method");
  const outcome = document.getElementById("outcome"), body = document.querySelector("#list tbody");
  const previous = document.getElementById("previous"), next = document.getElementById("next");
  let found = entries, page = 0;

  const make = (name, content, className) => {
    const element = document.createElement(name);
    if (content !== undefined) element.textContent = content;
    if (className) element.className = className;
    return element;
  };
  const option = (select, value, label) => {
    const made = make("option", label);
    made.value = value;
    select.append(made);
  };
  const several = (field) => new Set(cells.map((cell) => cell[field])).size > 1;
  const manyModels = several(2), manyData = several(3), manySeeds = several(1);
  const cellName = (cell) => [
    text(cell[0]), manySeeds ? `seed ${cell[1]}` : "", manyModels ? text(cell[2]) : "", manyData ? text(cell[3]) : "",
  ].filter(Boolean).join(" · ");

  // Texts may be long; they are converted to lower case once, at the first search.
  let lower = null;
  const matches = (entry, wanted) => {
    const has = (place) => place >= 0 && lower[place].includes(wanted);
    return has(entry[1]) || has(entry[3]) || has(entry[4]) || entry[6].some((moment) => moment && has(moment[0])) ||
      entry[7].some((other) => has(other[1]) || has(other[2]));
  };

  const answer = (moment, head) => {
    const cell = make("td");
    cell.dataset.head = head;
    if (!moment) {
      cell.append(make("span", "–"));
      return cell;
    }
    const [place, value] = moment;
    const said = make("bdi", text(place) || "(nothing)");
    if (value === 1 || value === 0) {
      const mark = make("span", value === 1 ? "✓ " : "✗ ", value === 1 ? "yes" : "no");
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", value === 1 ? "as expected: " : "not as expected: ");
      cell.append(mark);
    }
    cell.append(said);
    if (value !== null && value !== 1 && value !== 0) cell.append(make("span", String(Number(value.toPrecision(3))), "from"));
    return cell;
  };
  const expectedCell = (place) => {
    const cell = make("td");
    cell.dataset.head = "expected";
    cell.append(make("bdi", text(place) || "–"));
    return cell;
  };

  const line = (entry) => {
    const [cell, fact, , prompt, expected, result, moments, others] = entry;
    const row = make("tr"), head = make("th");
    head.scope = "row";
    head.append(make("bdi", text(prompt), "prompt"));
    const from = make("span", undefined, "from");
    from.append(make("bdi", text(fact)), " · ", make("bdi", cellName(cells[cell])));
    head.append(from);
    row.append(head, expectedCell(expected), ...moments.map((moment, index) => answer(moment, HEADS[index])));
    const end = make("td");
    end.dataset.head = "outcome";
    end.append(make("span", outcomes[result], `badge ${KINDS[outcomes[result]] || ""}`));
    row.append(end);
    if (others.length) {
      const more = make("button", others.length === 1 ? "1 more prompt" : `${others.length} more prompts`, "more");
      more.type = "button";
      more.setAttribute("aria-expanded", "false");
      let shown = [];
      more.addEventListener("click", () => {
        const open = more.getAttribute("aria-expanded") === "true";
        more.setAttribute("aria-expanded", String(!open));
        shown.forEach((each) => each.remove());
        shown = open ? [] : others.map(otherLine);
        row.after(...shown);
      });
      head.append(more);
    }
    return row;
  };
  const otherLine = ([metric, prompt, expected, moments]) => {
    const row = make("tr", undefined, "other"), head = make("th");
    head.scope = "row";
    head.append(make("bdi", text(prompt), "prompt"), make("span", text(metric), "from"));
    row.append(head, expectedCell(expected), ...moments.map((moment, index) => answer(moment, HEADS[index])), make("td"));
    return row;
  };

  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    body.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(line));
    const count = (number) => number.toLocaleString("en");
    document.getElementById("found").textContent = `${count(found.length)} of ${count(entries.length)} entries`;
    document.getElementById("page").textContent = `page ${count(page + 1)} of ${count(pages)}`;
    previous.disabled = page === 0;
    next.disabled = page === pages - 1;
  };
  const filter = () => {
    const wanted = words.value.trim().toLowerCase();
    if (wanted && !lower) lower = strings.map((each) => each.toLowerCase());
    const of = method.value === "" ? null : Number(method.value), with_ = outcome.value === "" ? null : Number(outcome.value);
    found = entries.filter((entry) =>
      (of === null || cells[entry[0]][0] === of) && (with_ === null || entry[5] === with_) && (!wanted || matches(entry, wanted)));
    page = 0;
    show();
  };
  let waiting = 0;
  words.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  method.addEventListener("change", filter);
  outcome.addEventListener("change", filter);
  document.getElementById("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    filter();
  });
  previous.addEventListener("click", () => { page -= 1; show(); });
  next.addEventListener("click", () => { page += 1; show(); });

  // Paper has no control to open the tables, and neither has a link into them.
  window.addEventListener("beforeprint", () => { document.querySelectorAll("details.all").forEach((each) => { each.open = true; }); });

  option(method, "", "all");
  for (const place of new Set(cells.map((cell) => cell[0]))) option(method, String(place), text(place));
  option(outcome, "", "all");
  const present = new Set(entries.map((entry) => entry[5]));
  outcomes.forEach((name, index) => { if (present.has(index)) option(outcome, String(index), name); });
  document.getElementById("browser").hidden = false;
  show();
})();
