// Clips play under the pointer; a click keeps them playing.
for (const frame of document.querySelectorAll("button.frame")) {
  const video = frame.firstElementChild;
  let kept = false;  // by a click, which the pointer's leaving does not undo
  const show = () => frame.classList.toggle("playing", !video.paused);
  const play = () => video.play().then(show, () => {});
  const stop = () => { video.pause(); show(); };
  frame.addEventListener("pointerenter", event => { if (event.pointerType === "mouse") play(); });
  frame.addEventListener("pointerleave", event => { if (event.pointerType === "mouse" && !kept) stop(); });
  frame.addEventListener("click", event => {
    kept = !kept;
    kept ? play() : stop();
  });
}
