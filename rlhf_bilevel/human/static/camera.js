/** The camera, which a person turns about what it looks at. */

import { norm } from "./vectors.js";

/** @typedef {import("./scene.js").Scene["camera"]} SceneCamera */

const WIDEST = 45; // degrees: a wider camera is drawn nearer
const AWAY = 1.15; // times as far as the scene's camera, so that what moves aside stays in the picture

/** Degrees, top to bottom. @param {SceneCamera} camera */
export const fieldOfView = ({ fovy }) => Math.min(WIDEST, fovy);

export class Camera {
  turn = 0; // radians away from the scene's own camera
  tilt = 0;
  zoom = 1;

  reset() {
    this.turn = this.tilt = 0;
    this.zoom = 1;
  }

  /** @param {number} turn radians @param {number} tilt */
  rotate(turn, tilt) {
    this.turn += turn;
    this.tilt = Math.min(3, Math.max(-3, this.tilt + tilt));
  }

  /** @param {number} by */
  magnify(by) {
    this.zoom = Math.min(10, Math.max(0.1, this.zoom * by));
  }

  /** Where it is, relative to what it looks at. @param {SceneCamera} camera @param {number} aspect */
  offset({ offset }, aspect) {
    const distance = norm(offset);
    const far = (AWAY * distance / this.zoom) * Math.max(1, 1 / aspect); // narrow canvases see as much
    const turn = Math.atan2(offset[1], offset[0]) + this.turn;
    const tilt = Math.min(1.55, Math.max(-1.55, Math.asin(offset[2] / distance) + this.tilt));
    return [far * Math.cos(tilt) * Math.cos(turn), far * Math.cos(tilt) * Math.sin(turn), far * Math.sin(tilt)];
  }
}
