"use strict";
// Sort and filter tables of images, and copy listings. The page is complete without this script.
for (const part of document.querySelectorAll(".images")) {
  const body = part.querySelector("tbody");
  const rows = [...body.rows];
  const choices = [...part.querySelectorAll("select")];
  const count = part.querySelector("output");
  const filter = () => {
    let shown = 0;
    for (const row of rows) {
      const tags = row.dataset.tags.split(" ");
      row.hidden = choices.some((choice) => choice.value && !tags.includes(choice.value));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} images`;
  };
  for (const choice of choices) choice.addEventListener("change", filter);
  [...part.querySelectorAll("thead th")].forEach((head, column) => {
    if (!head.hasAttribute("data-sorts")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const numbers = rows.every((row) => value(row) !== "" && !isNaN(value(row)));
      rows.sort((a, b) => {
        const order = numbers ? value(a) - value(b) : value(a).localeCompare(value(b));
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });
  part.querySelector(".choices").hidden = false;
  filter();
}
for (const listing of document.querySelectorAll("pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(listing.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(listing);
      button.textContent = "Selected";
    }
  });
  listing.after(button);
}
