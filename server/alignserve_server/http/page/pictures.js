// Takes pictures that are chosen, dropped, pasted or photographed, and makes them fit the server's limits.

import { CallError } from "./calls.js";

const LARGEST_SIDE = 2048; // of a picture that has to be scaled down; the model itself sees far fewer pixels
const JPEG_QUALITY = 0.92;
const ENVELOPE_BYTES = 1 << 16; // of a request, in addition to its picture

/** Passes pictures to `take` that are chosen with one of the inputs, or dropped on the zone. */
export function watchForPictures(zone, inputs, take) {
  for (const input of inputs) {
    input.addEventListener("change", () => {
      const files = [...input.files];
      input.value = ""; // the same file can be chosen again
      if (files.length) take(files);
    });
  }
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const files = [...event.dataTransfer.files];
    if (files.length) take(files);
  });
}

/**
 * Returns a picture as `{name, blob, note, isVisible}`. It is the file as it is, or a smaller copy if it exceeds a
 * limit of the server or has a format that only the browser reads; then `note` says so. Some are visible to the server
 * only.
 */
export async function fitted(file, info) {
  const limits = {
    bytes: Math.min(Number(info.maxImageBytes), (Number(info.maxRequestBytes) - ENVELOPE_BYTES) * 0.75), // in base64
    pixels: Number(info.maxImagePixels),
  };
  const name = file.name || "picture";
  const isRead = file.type === "" || info.imageFormats.includes(formatOf(file.type));
  const bitmap = await decoded(file);
  if (!bitmap) {
    if (file.size > limits.bytes) throw new CallError("IMAGE_TOO_LARGE", tooLarge(file, name, limits));
    if (isRead) return { name, blob: file, note: "", isVisible: false };
    throw new CallError("IMAGE_UNREADABLE", `Neither this browser nor the server reads ${name} as a picture.`);
  }
  const { width, height } = bitmap;
  if (isRead && file.size <= limits.bytes && width * height <= limits.pixels) {
    bitmap.close();
    return { name, blob: file, note: "", isVisible: true };
  }
  const blob = await smaller(bitmap, file.type === "image/png", limits);
  const why = isRead
    ? `it has ${megabytes(file.size)} and ${width} × ${height} pixels; the server takes up to ` +
      `${megabytes(limits.bytes)} and ${limits.pixels / 1e6} megapixels`
    : `the server does not read ${file.type}`;
  return { name, blob, note: `This browser sent a smaller copy of ${name}: ${why}.`, isVisible: true };
}

/** Returns the bytes of a blob in base64. */
export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new CallError("IMAGE_UNREADABLE", "The browser cannot read this file."));
    reader.readAsDataURL(blob);
  });
}

function tooLarge(file, name, limits) {
  return `${name} has ${megabytes(file.size)}, the server takes up to ${megabytes(limits.bytes)}, and this browser cannot scale it down.`;
}

function formatOf(type) {
  return type.replace("image/", "").replace("x-ms-bmp", "bmp").toUpperCase();
}

async function decoded(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    return null;
  }
}

async function smaller(bitmap, isPng, { bytes, pixels }) {
  let { width, height } = bitmap;
  let scale = Math.min(1, LARGEST_SIDE / Math.max(width, height), Math.sqrt(pixels / (width * height)));
  const types = isPng ? ["image/png", "image/jpeg"] : ["image/jpeg"]; // PNG keeps what is transparent
  for (;;) {
    width = Math.max(1, Math.floor(bitmap.width * scale));
    height = Math.max(1, Math.floor(bitmap.height * scale));
    for (const type of types) {
      const blob = await drawn(bitmap, width, height, type);
      if (blob.size <= bytes || width * height === 1) {
        bitmap.close();
        return blob;
      }
    }
    scale /= 2;
  }
}

function drawn(bitmap, width, height, type) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  if (type === "image/jpeg") {
    context.fillStyle = "#fff"; // JPEG has no transparency: it would be black instead
    context.fillRect(0, 0, width, height);
  }
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return new Promise((resolve) => canvas.toBlob(resolve, type, JPEG_QUALITY));
}

const megabytes = (bytes) => `${(bytes / (1 << 20)).toFixed(1)} MiB`;
