// Buttons that put a command on the clipboard. Browsers allow it on https and on localhost only; elsewhere the
// text is selected instead.

async function copy(button) {
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    window.getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function show() {
  for (const button of document.querySelectorAll("[data-copy][hidden]")) button.hidden = false;
}

export function startCopying() {
  show();
  document.addEventListener("runstead:changed", show);
  document.addEventListener("click", (clicked) => {
    const button = clicked.target.closest("[data-copy]");
    if (button) copy(button);
  });
}
