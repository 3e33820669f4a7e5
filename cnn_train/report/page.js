"use strict";
// Hovering shows what a mark says; the filter dims marks and hides rows. Without this script the page is complete.
const marks = [...document.querySelectorAll(".chart [aria-label][role=graphics-symbol]")]
  .filter((mark) => !["axis", "legend"].includes(mark.getAttribute("aria-roledescription")));

for (const title of document.querySelectorAll(".chart svg > title")) {
  const chart = title.parentNode;  // the browser's own tooltip would hide ours
  chart.setAttribute("aria-label", title.textContent);
  chart.setAttribute("aria-labelledby", chart.querySelector("desc").id);
  title.remove();
}

const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest?.(".chart [aria-label][role=graphics-symbol]");
  tip.hidden = !mark || !marks.includes(mark);
  if (tip.hidden) return;
  tip.textContent = mark.getAttribute("aria-label");
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18) + "px";
});

const rows = [...document.querySelectorAll("tr[data-name]")];
if (new Set(rows.map((row) => row.dataset.name)).size > 2) {
  const place = document.getElementById("filter");
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = "Filter settings: norm=bn lr=0.1";
  input.setAttribute("aria-label", "Filter settings by words, all of which must occur");
  place.append(input);
  place.hidden = false;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (text) => words.every((word) => text.toLowerCase().includes(word));
    for (const row of rows) row.hidden = !(row.dataset.name.includes("=") ? fits(row.dataset.name) : true);
    for (const mark of marks) {
      const label = mark.getAttribute("aria-label");
      mark.classList.toggle("dim", label.includes("=") && !fits(label));
    }
  });
}
