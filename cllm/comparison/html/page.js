"use strict";
// A timeline tells of one operation at a time: the one under the pointer, or the one that the slider stands on.
const megabytes = (nbytes) => (nbytes / 1e6).toLocaleString("en", { maximumSignificantDigits: 4 }) + " MB";

for (const figure of document.querySelectorAll("figure.timeline")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const slider = figure.querySelector("input");
  const output = figure.querySelector("output");
  const cursor = figure.querySelector(".cursor");
  const room = figure.querySelector(".hit");
  const count = data.operations.length;

  const show = (position) => {
    const parts = Object.entries(data.by_kind)
      .map(([kind, nbytes]) => [kind, nbytes[position]])
      .filter(([, nbytes]) => nbytes > 0)
      .sort((one, other) => other[1] - one[1])
      .map(([kind, nbytes]) => `${kind} ${megabytes(nbytes)}`);
    const text = `${position + 1} of ${count}, ${data.operations[position]}: ${megabytes(data.bytes[position])}`;
    output.textContent = `${text} (${parts.join(", ")})`;
    slider.value = position;
    slider.setAttribute("aria-valuetext", text);
    const x = Number(room.getAttribute("x")) + (Number(room.getAttribute("width")) * (position + 0.5)) / count;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  };

  slider.addEventListener("input", () => show(Number(slider.value)));
  room.addEventListener("pointermove", (event) => {
    const box = room.getBoundingClientRect();
    const position = Math.floor(((event.clientX - box.left) / box.width) * count);
    show(Math.min(count - 1, Math.max(0, position)));
  });
  show(Number(slider.value));
}
