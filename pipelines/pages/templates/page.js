"use strict";

// A slider shows one of its pictures.
for (const slider of document.querySelectorAll("[data-slider]")) {
  const input = slider.querySelector("input");
  const words = slider.querySelector("output");
  const frames = [...slider.querySelectorAll("[data-frame]")];
  const show = () => {
    frames.forEach((frame, place) => { frame.hidden = place !== Number(input.value); });
    words.textContent = frames[input.value].dataset.frame;
    input.setAttribute("aria-valuetext", words.textContent);
  };
  input.addEventListener("input", show);
  show();
}

// A page that is still being written reloads itself where the reader asks for it; the address remembers the wish.
const watch = document.querySelector("#watch");
if (watch) {
  let timer = 0;
  const set = () => {
    clearTimeout(timer);
    history.replaceState(null, "", watch.checked ? "#watch" : location.pathname + location.search);
    if (watch.checked) timer = setTimeout(() => location.reload(), 20000);
  };
  watch.checked = location.hash === "#watch";
  watch.addEventListener("change", set);
  if (watch.checked) set();
}
