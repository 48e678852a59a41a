"use strict";
(() => {
  const table = document.querySelector("#results table");
  if (!table) return;
  document.documentElement.classList.add("js");
  const controls = document.querySelector(".controls");
  const search = controls.querySelector("input");
  const chips = [...controls.querySelectorAll("[data-show]")];
  const output = controls.querySelector("output");
  const empty = document.querySelector(".empty");
  const order = ["manipulated", "suspicious", "inconclusive", "authentic", "failed"];
  const number = (text) => (text === "" ? null : Number(text));

  const files = Array.from(table.querySelectorAll("tbody"), (body, index) => {
    const file = body.firstElementChild, more = body.lastElementChild;
    const [name, why] = [".name", ".why"].map((place) => file.querySelector(place).textContent.trim());
    return {
      body, file, more, index, words: file.textContent.toLowerCase(), details: more.querySelector("details"),
      verdict: order.indexOf(body.dataset.verdict), score: number(body.dataset.score),
      title: name, name: name.toLowerCase(), why: why.toLowerCase(),
      faces: number(body.dataset.faces), seconds: number(body.dataset.seconds),
    };
  });

  function show(entry, open) {
    entry.details.open = open;
    entry.more.classList.toggle("open", open);
    entry.button.setAttribute("aria-expanded", String(open));
  }
  for (const entry of files) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "toggle";
    button.setAttribute("aria-controls", entry.details.id);
    button.setAttribute("aria-label", "Details of " + entry.title);
    entry.file.firstElementChild.firstElementChild.prepend(button);
    entry.button = button;
    show(entry, entry.details.open);
  }
  const byBody = new Map(files.map((entry) => [entry.body, entry]));
  table.addEventListener("click", (event) => {
    const row = event.target.closest("tr.file");
    if (!row || String(window.getSelection())) return;
    const entry = byBody.get(row.parentNode);
    show(entry, !entry.details.open);
  });

  function compare(key, sign) {
    return (a, b) => {
      const x = a[key], y = b[key];
      // What is missing comes last either way.
      if (x === null || y === null || x === "" || y === "") {
        const gap = (x === null || x === "") - (y === null || y === "");
        return gap || a.index - b.index;
      }
      return (x < y ? -sign : x > y ? sign : 0) || a.index - b.index;
    };
  }
  const heads = [...table.querySelectorAll("th")];
  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const key = head.dataset.sort;
      const first = key === "score" || key === "faces" || key === "seconds" ? "descending" : "ascending";
      const was = head.getAttribute("aria-sort");
      const now = !was ? first : was === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", now);
      files.sort(compare(key, now === "ascending" ? 1 : -1));
      const fragment = document.createDocumentFragment();
      files.forEach((entry) => fragment.append(entry.body));
      table.append(fragment);
    });
  }

  let wanted = "";
  function filter() {
    const text = search.value.trim().toLowerCase();
    let shown = 0;
    for (const entry of files) {
      const fits = (!wanted || entry.body.dataset.verdict === wanted) && entry.words.includes(text);
      entry.body.hidden = !fits;
      shown += fits;
    }
    output.textContent = shown === files.length ? "" : "showing " + shown.toLocaleString("en") + " of " + files.length.toLocaleString("en");
    empty.hidden = shown > 0;
  }
  function choose(name) {
    wanted = name;
    chips.forEach((chip) => chip.setAttribute("aria-pressed", String(chip.dataset.show === name)));
    filter();
  }
  chips.forEach((chip) => chip.addEventListener("click", () => choose(chip.dataset.show)));
  empty.querySelector("button").addEventListener("click", () => { search.value = ""; choose(""); });
  search.addEventListener("input", filter);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.hidden = false;
})();
