/** Clips on a 2-D canvas, for where there is no WebGL: the same triangles, the furthest first. */

import { fieldOfView } from "./camera.js";
import { cell, checker, SKY, SUN } from "./looks.js";
import { triangles } from "./shapes.js";
import { cross, dot, minus, norm, normalised, rotation } from "./vectors.js";

/**
 * @typedef {import("./camera.js").Camera} Camera
 * @typedef {import("./scene.js").Motion} Motion
 * @typedef {import("./scene.js").Scene} Scene
 *
 * @typedef {object} Eye
 * @property {number[]} at where it is in the world
 * @property {number} near what is closer is not drawn
 * @property {(point: number[]) => number[]} seen pixels to the right, pixels down, distance
 */

export class CanvasClip {
  /** @param {Scene} scene @param {Motion} motion */
  constructor(scene, motion) {
    this._of = scene;
    this._motion = motion;
    this._shapes = scene.parts.map((part) => triangles(part, scene));
  }

  /** @param {CanvasRenderingContext2D} context @param {Camera} camera */
  draw(context, camera) {
    const { width, height } = context.canvas, eye = this._eye(camera, width, height);
    context.fillStyle = css(SKY);
    context.fillRect(0, 0, width, height);
    const faces = this._of.parts.flatMap((part, number) => {
      if (part.type !== "plane") return this._faces(number, eye);
      this._ground(context, number, eye);
      return [];
    });
    faces.sort((a, b) => b.far - a.far);
    for (const { corners, colour } of faces) fill(context, corners, colour);
  }

  /** @param {Camera} camera @param {number} width @param {number} height @returns {Eye} */
  _eye(camera, width, height) {
    const offset = camera.offset(this._of.camera, width / height), back = normalised(offset);
    const right = normalised(cross([0, 0, 1], back)), up = cross(back, right), near = norm(offset) / 50;
    const focal = height / 2 / Math.tan(fieldOfView(this._of.camera) * Math.PI / 360);
    const at = offset.map((value, k) => value + this._motion.focus[k]);
    const seen = (/** @type {number[]} */ point) => {
      const away = minus(point, at), far = -dot(away, back), scale = focal / Math.max(far, near);
      return [width / 2 + scale * dot(away, right), height / 2 - scale * dot(away, up), far];
    };
    return { at, near, seen };
  }

  /** The faces of a part that are seen. @param {number} number @param {Eye} eye */
  _faces(number, eye) {
    const part = this._of.parts[number], { points, faces } = this._shapes[number];
    const placed = this._placed(number, points), pictured = placed.map(eye.seen), seen = [];
    for (let f = 0; f < faces.length; f += 3) {
      const face = faces.slice(f, f + 3), [p, q, r] = face.map((i) => placed[i]), corners = face.map((i) => pictured[i]);
      const out = cross(minus(q, p), minus(r, p));
      if (dot(out, minus(eye.at, p)) <= 0 || corners.some((corner) => corner[2] < eye.near)) continue;
      const light = 0.62 + 0.38 * dot(normalised(out), SUN), lit = part.rgba.slice(0, 3).map((value) => light * value);
      const far = part.mark ? 0 : (corners[0][2] + corners[1][2] + corners[2][2]) / 3;
      seen.push({ far, corners, colour: css(lit, part.mark ? 0.6 : part.rgba[3]) });
    }
    return seen;
  }

  /** @param {CanvasRenderingContext2D} context @param {number} number @param {Eye} eye */
  _ground(context, number, eye) {
    const { size, rgba } = this._of.parts[number], step = cell(this._of.extent);
    const reach = Math.ceil(3 * norm(this._of.camera.offset) / step);
    const turn = rotation(this._motion.quaternion(number)), away = minus(this._motion.focus, this._motion.position(number));
    const [x, y] = [0, 1].map((k) => Math.round((turn[k] * away[0] + turn[3 + k] * away[1] + turn[6 + k] * away[2]) / step));
    const [dark, light] = checker(rgba.slice(0, 3)).map((tone) => css(tone));
    const held = (/** @type {number} */ value, /** @type {number} */ half) => (half ? Math.min(half, Math.max(-half, value)) : value);
    for (let i = x - reach; i < x + reach; i++) {
      for (let j = y - reach; j < y + reach; j++) {
        const around = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]];
        const flat = around.flatMap(([u, v]) => [held(u * step, size[0]), held(v * step, size[1]), 0]);
        const corners = this._placed(number, flat).map(eye.seen);
        if (corners.every((corner) => corner[2] > eye.near)) fill(context, corners, (i + j) % 2 ? light : dark);
      }
    }
  }

  /** Points of a part, three numbers each, in the world. @param {number} number @param {number[]} points */
  _placed(number, points) {
    const at = this._motion.position(number), m = rotation(this._motion.quaternion(number)), placed = [];
    for (let i = 0; i < points.length; i += 3) {
      const x = points[i], y = points[i + 1], z = points[i + 2];
      placed.push([0, 1, 2].map((k) => at[k] + m[3 * k] * x + m[3 * k + 1] * y + m[3 * k + 2] * z));
    }
    return placed;
  }
}

/** @param {number[]} colour */
function css(colour, alpha = 1) {
  return `rgba(${colour.map((value) => Math.round(255 * Math.min(1, value))).join(",")},${alpha})`;
}

/**
 * A polygon, a little larger than it is, which closes the seams between neighbours.
 *
 * @param {CanvasRenderingContext2D} context @param {number[][]} corners @param {string} colour
 */
function fill(context, corners, colour) {
  const middle = [0, 1].map((k) => corners.reduce((sum, corner) => sum + corner[k], 0) / corners.length);
  context.beginPath();
  for (const [x, y] of corners) {
    const away = Math.hypot(x - middle[0], y - middle[1]) || 1, grown = 1 + 0.6 / away;
    context.lineTo(middle[0] + grown * (x - middle[0]), middle[1] + grown * (y - middle[1]));
  }
  context.fillStyle = colour;
  context.fill();
}
