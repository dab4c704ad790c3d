/**
 * What the server says of a scene and of a clip (human/clips/scene.py), and where the parts are at a time.
 *
 * @typedef {object} Part
 * @property {"plane" | "hfield" | "sphere" | "capsule" | "ellipsoid" | "cylinder" | "box" | "mesh"} type
 * @property {number[]} size as MuJoCo has it, metres; a plane of size 0 has no end
 * @property {number[]} rgba from 0 to 1
 * @property {boolean} [mark] a goal, which is seen through what hides it
 * @property {number} [mesh] its name in the scene's meshes
 * @property {number[]} [heights] of a heightfield, row by row; 1000 is the highest
 * @property {number} [columns] of a heightfield
 *
 * @typedef {object} Scene
 * @property {number} extent metres
 * @property {number} unit of the vertices of meshes, metres
 * @property {{offset: number[], fovy: number}} camera its place relative to what it looks at, metres; degrees, top to bottom
 * @property {Record<string, {vertices: number[], faces: number[]}>} meshes
 * @property {Part[]} parts
 *
 * @typedef {number[]} Track one number where nothing moves, else the first and the differences
 *
 * @typedef {object} Frames
 * @property {number} count
 * @property {number} unit of positions, metres
 * @property {number} quaternion its unit
 * @property {Track[]} focus x, y, z of what the camera looks at
 * @property {Track[][]} parts for each part x, y, z and the quaternion w, x, y, z
 *
 * @typedef {{kind: "scene", scene: string, fps: number, frames: Frames}} SceneClip
 * @typedef {{kind: "frames", fps: number, frames: string[]}} PictureClip pictures as data URLs
 * @typedef {SceneClip | PictureClip} Clip
 */

const POSE = 7; // numbers of a part: x, y, z and the quaternion w, x, y, z

/** Poses of the parts at a frame that may lie between two. */
export class Motion {
  /** @param {Frames} frames */
  constructor({ count, unit, quaternion, focus, parts }) {
    this.count = count;
    this._focus = focus.map((track) => unrolled(track, count, unit));
    this._parts = parts.map((part) => part.map((track, k) => unrolled(track, count, k < 3 ? unit : quaternion)));
    this._poses = new Float32Array(POSE * parts.length);
    this.focus = [0, 0, 0];
  }

  /** @param {number} part */
  position(part) {
    return this._poses.subarray(POSE * part, POSE * part + 3);
  }

  /** w, x, y, z. @param {number} part */
  quaternion(part) {
    return this._poses.subarray(POSE * part + 3, POSE * (part + 1));
  }

  /** @param {number} frame from 0 to count - 1 */
  seek(frame) {
    const i = Math.min(Math.floor(frame), this.count - 1), j = Math.min(i + 1, this.count - 1), share = frame - i;
    const between = (/** @type {Float32Array} */ values) => values[i] + share * (values[j] - values[i]);
    this.focus = this._focus.map(between);
    this._parts.forEach((part, number) => {
      const at = POSE * number;
      for (let k = 0; k < POSE; k++) this._poses[at + k] = between(part[k]);
      const length = Math.hypot(...this._poses.subarray(at + 3, at + POSE)) || 1;
      for (let k = 3; k < POSE; k++) this._poses[at + k] /= length;
    });
  }
}

/** The numbers of all frames. @param {Track} track @param {number} count @param {number} unit */
function unrolled(track, count, unit) {
  const values = new Float32Array(count);
  let sum = 0;
  for (let t = 0; t < count; t++) values[t] = unit * (t < track.length ? (sum += track[t]) : sum);
  return values;
}
