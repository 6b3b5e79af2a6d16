// A page inside another page's frame tells how high it is, so that the frame can be made to fit. Nobody is listened to:
// whatever the page around says is ignored. A height is no secret, and so everybody may hear it.

if (window.parent !== window) {
  const tell = () => {
    const height = Math.ceil(document.body.getBoundingClientRect().height);
    window.parent.postMessage({ type: "holdfast:height", height }, "*");
  };
  new ResizeObserver(tell).observe(document.body);
  tell();
}
