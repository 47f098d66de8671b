// Packed pictures, {shape: [H, W, C], data: base64}, on canvases.

export function bytesOf(data) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return bytes;
}

export function base64Of(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

export function imageData(packed) {
  const [height, width, channels] = packed.shape;
  const bytes = bytesOf(packed.data);
  const made = new ImageData(width, height);
  for (let i = 0; i < width * height; i += 1) {
    for (let c = 0; c < 3; c += 1) made.data[4 * i + c] = bytes[channels * i + (channels === 3 ? c : 0)];
    made.data[4 * i + 3] = 255;
  }
  return made;
}

export function show(canvas, packed) {
  if (!packed) return;
  const [height, width] = packed.shape;
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  canvas.style.setProperty("aspect-ratio", `${width} / ${height}`);
  canvas.classList.toggle("smooth", Math.min(width, height) >= 192);
  canvas.getContext("2d").putImageData(imageData(packed), 0, 0);
}

// The pixels of a canvas as a packed picture of so many channels; grey is the luma of BT.601.
export function packedOf(canvas, channels) {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const bytes = new Uint8Array(width * height * channels);
  for (let i = 0; i < width * height; i += 1) {
    const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    if (channels === 1) bytes[i] = Math.round(0.299 * r + 0.587 * g + 0.114 * b);
    else bytes.set([r, g, b], 3 * i);
  }
  return { shape: [height, width, channels], data: base64Of(bytes) };
}

export function download(canvas, name) {
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
