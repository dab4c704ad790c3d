/**
 * Plays clips of training, as clips/recorder.py and clips/scene.py describe them, each on a canvas of its own.
 *
 *     const viewer = new ClipViewer(element, async (id) => scene);
 *     await viewer.load(clip);    // shows its first frame
 *     viewer.show(0.5);           // the middle: 0 is the first frame, 1 the last; in between, poses are interpolated
 *
 * Dragging turns the camera about what it follows, the wheel and two fingers zoom, a double click goes back. Viewers that
 * are given the same camera turn together. Nothing here needs more of a policy than "script-src 'self'".
 */

import { Camera } from "./camera.js";
import { Pictures } from "./pictures.js";
import { CanvasClip } from "./renderer_canvas.js";
import { Studio, WebGLClip } from "./renderer_webgl.js";
import { Motion } from "./scene.js";

/**
 * @typedef {import("./scene.js").Clip} Clip
 * @typedef {import("./scene.js").Scene} Scene
 */

/** @type {Studio | null | undefined} */
let studio; // undefined before it is needed, null where there is no WebGL

export class ClipViewer {
  /**
   * @param {Element} container whose size it takes
   * @param {(id: string) => Promise<Scene>} scenes is asked for a clip's scene
   */
  constructor(container, scenes) {
    if (studio === undefined) studio = Studio.open();
    this.frames = this.fps = 0;
    this.camera = new Camera();
    this._scenes = scenes;
    this._share = this._loads = 0;
    this._drawn = ""; // what is on the canvas
    this._detail = 1;
    /** @type {{id: string, scene: Scene, motion: Motion} | null} */
    this._clip = null; // where it is one of a scene
    /** @type {Pictures | WebGLClip | CanvasClip | null} */
    this._renderer = null;
    /** @type {Map<number, [number, number]>} */
    this._pointers = new Map();
    this.canvas = document.createElement("canvas");
    Object.assign(this.canvas.style, { display: "block", width: "100%", height: "100%", touchAction: "pan-y" });
    container.append(this.canvas);
    this._context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    this._resized = new ResizeObserver(() => this._fit());
    this._resized.observe(this.canvas);
    this._listen();
  }

  /** Pixels of the canvas along a pixel of the page: less is drawn faster. @param {number} detail */
  set detail(detail) {
    this._detail = detail;
    this._fit();
  }

  /** Whether clips are drawn without WebGL. */
  get fallback() {
    return !studio || studio.lost;
  }

  /** Shows the first frame. Of two calls the later one counts. Rejected where its scene cannot be had. @param {Clip} clip */
  async load(clip) {
    const load = ++this._loads;
    const pictures = clip.kind === "frames" ? await Pictures.open(clip.frames) : null;
    const made = clip.kind === "scene" ? { id: clip.scene, scene: await this._scenes(clip.scene), motion: new Motion(clip.frames) } : null;
    if (load !== this._loads) return;
    this._clip = made;
    this._renderer = pictures;
    this._seekable = pictures || made?.motion;
    this.frames = this._seekable?.count ?? 0;
    this.fps = clip.fps;
    this._fit();
    this.show(0);
  }

  /** The clip at a share of its length, from 0 to 1. @param {number} share */
  show(share) {
    this._share = Math.min(1, Math.max(0, share));
    if (!this._seekable || !this.canvas.width) return;
    this._seekable.seek(this._share * (this.frames - 1));
    this._draw();
  }

  dispose() {
    this._loads++;
    this._clip = this._renderer = this._seekable = null;
    this._resized.disconnect();
    this.canvas.remove();
  }

  _draw() {
    const { turn, tilt, zoom } = this.camera, now = [this._loads, this._share, turn, tilt, zoom, this.fallback].join();
    if (now === this._drawn) return;
    this._drawn = now;
    if (this._clip) {
      const { id, scene, motion } = this._clip;
      if (this._renderer instanceof (this.fallback ? WebGLClip : CanvasClip)) this._renderer = null; // WebGL came or went
      this._renderer ??= studio && !studio.lost ? new WebGLClip(studio, id, scene, motion) : new CanvasClip(scene, motion);
    }
    this._renderer?.draw(this._context, this.camera);
  }

  _fit() {
    const sharp = this._detail * Math.min(2, window.devicePixelRatio || 1), { clientWidth, clientHeight } = this.canvas;
    const [width, height] = [Math.round(sharp * clientWidth), Math.round(sharp * clientHeight)];
    if (width === this.canvas.width && height === this.canvas.height) return;
    this.canvas.width = width; // which wipes it
    this.canvas.height = height;
    this._drawn = "";
    this.show(this._share);
  }

  _listen() {
    const { canvas, _pointers: pointers } = this;
    const spread = () => {
      const [a, b] = [...pointers.values()];
      return Math.hypot(a[0] - b[0], a[1] - b[1]);
    };
    canvas.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const apart = pointers.size === 2 ? spread() : 0, radians = Math.PI / Math.max(200, canvas.clientHeight);
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
      if (apart) this.camera.magnify(spread() / apart);
      else this.camera.rotate(-radians * (event.clientX - before[0]), radians * (event.clientY - before[1]));
      this.show(this._share);
    });
    canvas.addEventListener("pointerup", (event) => pointers.delete(event.pointerId));
    canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.camera.magnify(Math.exp(-event.deltaY / 500));
      this.show(this._share);
    }, { passive: false });
    canvas.addEventListener("dblclick", () => {
      this.camera.reset();
      this.show(this._share);
    });
  }
}
