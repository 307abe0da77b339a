// Pictures with the boxes of an answer on them.

const COLOURS = ["#3ec5ff", "#ffd43b", "#69db7c", "#ff8787", "#b197fc", "#ffa94d", "#63e6be", "#f783ac"];

export const colourOf = (classId) => COLOURS[classId % COLOURS.length];

// An encoded image as the gateway sees it: its EXIF orientation is not applied, and boxes are in its own pixels.
export const seen = (image) => createImageBitmap(image, { imageOrientation: "none" });

export function drawBoxes(canvas, bitmap, detections) {
  const pen = canvas.getContext("2d");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  pen.drawImage(bitmap, 0, 0);
  const thick = Math.max(2, bitmap.width / 400);
  pen.lineWidth = thick;
  pen.font = `${Math.max(12, Math.round(bitmap.width / 50))}px system-ui, sans-serif`;
  pen.textBaseline = "bottom";
  for (const found of detections) {
    const { x1, y1, x2, y2 } = found.box;
    const text = `${found.label} ${found.score.toFixed(2)}`;
    const height = parseInt(pen.font, 10) + 2;
    const top = Math.max(y1, height);
    pen.strokeStyle = pen.fillStyle = colourOf(found.class_id);
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const wide = pen.measureText(text).width + 6;
    const left = Math.max(0, Math.min(x1 - thick / 2, bitmap.width - wide));
    pen.fillRect(left, top - height, wide, height);
    pen.fillStyle = "#000";
    pen.fillText(text, left + 3, top);
  }
}
