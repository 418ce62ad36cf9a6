// Frames computed beforehand, and the controls that choose among them. One call per explorer, by the id of its element.
"use strict";
function robust_nb_frames(id) {
  for (const box of document.querySelectorAll(`[id="${id}"]`)) {
    if (box.dataset.ready) continue;
    box.dataset.ready = "yes";
    const { controls, parts, frames } = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
    const at = controls.map(c => c.start), texts = k => {
      const { texts, by } = controls[k];
      return by ? texts[at[controls.findIndex(c => c.name === by)]] : texts;
    };
    const place = box.querySelector(".rnb-controls"), picture = box.querySelector(".rnb-picture"), inputs = [];
    const show = () => {
      controls.forEach((c, k) => {
        inputs[k].value = at[k];
        if (c.kind !== "slider") return;
        inputs[k].setAttribute("aria-valuetext", texts(k)[at[k]]);
        inputs[k].nextElementSibling.textContent = texts(k)[at[k]];
      });
      picture.innerHTML = frames[at.join()].map(i => parts[i]).join("");
      const said = picture.querySelector(".rnb-said");
      box.querySelector(".rnb-live").textContent = said ? said.textContent : "";   // for readers who hear the page
    };
    controls.forEach((c, k) => {
      const label = document.createElement("label");
      label.textContent = c.label;
      let input;
      if (c.kind === "slider") {
        input = Object.assign(document.createElement("input"), { type: "range", min: 0, max: texts(k).length - 1, step: 1 });
        label.append(input, document.createElement("output"));
      } else {
        input = document.createElement("select");
        texts(k).forEach((t, j) => input.append(new Option(t, j)));
        label.append(input);
      }
      input.name = c.name;
      input.addEventListener("input", () => { at[k] = +input.value; show(); });
      if (texts(k).length === 1) label.style.display = "none";               // nothing to choose
      inputs.push(input);
      place.append(label);
    });
    box.querySelector(".rnb-picked input").addEventListener("change", e => {   // a point of the picture was clicked: NAME=TEXT
      const [name, text] = e.target.value.split("="), k = controls.findIndex(c => c.name === name), j = k < 0 ? -1 : texts(k).indexOf(text);
      if (j >= 0) { at[k] = j; show(); }
    });
    show();
  }
}
