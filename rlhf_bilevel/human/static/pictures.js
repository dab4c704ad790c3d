/** Clips of pictures that an environment drew itself. */

/** @typedef {import("./camera.js").Camera} Camera */

export class Pictures {
  /** @param {HTMLImageElement[]} pictures */
  constructor(pictures) {
    this._pictures = pictures;
    this._shown = pictures[0];
  }

  /** @param {string[]} sources data URLs */
  static async open(sources) {
    return new Pictures(await Promise.all(sources.map(async (source) => {
      const picture = new Image();
      picture.src = source;
      await picture.decode();
      return picture;
    })));
  }

  get count() {
    return this._pictures.length;
  }

  /** @param {number} frame */
  seek(frame) {
    this._shown = this._pictures[Math.round(frame)];
  }

  /** @param {CanvasRenderingContext2D} context @param {Camera} camera */
  draw(context, { zoom }) {
    const { width, height } = context.canvas, picture = this._shown;
    const scale = zoom * Math.min(width / picture.width, height / picture.height);
    const [wide, high] = [scale * picture.width, scale * picture.height];
    context.clearRect(0, 0, width, height);
    context.drawImage(picture, (width - wide) / 2, (height - high) / 2, wide, high);
  }
}
