// What went wrong, in one sentence above the photos, with what can be done about it.

const box = document.getElementById("problem");
const buttons = document.getElementById("problem-actions");

/** Shows a message; `actions`: {label: function}. Any action closes it. */
export function show(text, actions = {}) {
  box.querySelector("p").textContent = text;
  buttons.replaceChildren(...Object.entries(actions).map(([label, act]) => button(label, act)));
  box.hidden = false;
}

export function clear() {
  box.hidden = true;
}

function button(label, act) {
  const node = document.createElement("button");
  node.type = "button";
  node.textContent = label;
  node.addEventListener("click", () => {
    clear();
    act();
  });
  return node;
}

export function listen() {
  document.getElementById("dismiss").addEventListener("click", clear);
}
