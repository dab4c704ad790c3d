/**
 * Triangles of a part about its own origin.
 *
 * @typedef {object} Shape
 * @property {number[]} points three numbers each
 * @property {number[]} faces three numbers of points each, counter-clockwise as seen from outside
 *
 * @typedef {import("./scene.js").Part} Part
 * @typedef {import("./scene.js").Scene} Scene
 */

import { cross, dot, minus, normalised } from "./vectors.js";

const CREASE = Math.cos(0.6); // of the angle from which on an edge is sharp

/** None of a plane, which is drawn as ground. @param {Part} part @param {Scene} scene @returns {Shape} */
export function triangles(part, scene) {
  const [a, b, c] = part.size;
  switch (part.type) {
    case "sphere": return turned(arc(a, 0, -1, 1));
    case "ellipsoid": return scaled(turned(arc(1, 0, -1, 1)), [a, b, c]);
    case "capsule": return turned([...arc(a, -b, -1, 0), ...arc(a, b, 0, 1)]);
    case "cylinder": return turned([[0, -b], [a, -b], [a, b], [0, b]]);
    case "box": return box(a, b, c);
    case "hfield": return heightfield(part);
    case "mesh": return mesh(scene.meshes[Number(part.mesh)], scene.unit);
    case "plane": return { points: [], faces: [] };
  }
}

/**
 * [radius, height] along a part of a circle.
 *
 * @param {number} radius @param {number} middle its height
 * @param {number} low where it begins and ends, in quarter turns @param {number} high
 */
function arc(radius, middle, low, high, steps = 6) {
  const count = steps * (high - low);
  return Array.from({ length: count + 1 }, (_, i) => {
    const angle = (low + i / steps) * Math.PI / 2;
    return [radius * Math.cos(angle), middle + radius * Math.sin(angle)];
  });
}

/** An outline of [radius, height], from below, turned about z. @param {number[][]} outline @returns {Shape} */
function turned(outline, around = 24) {
  /** @type {number[]} */
  const points = [], /** @type {number[]} */ faces = [];
  outline.forEach(([radius, height], ring) => {
    for (let i = 0; i < around; i++) {
      const angle = 2 * Math.PI * i / around, next = (i + 1) % around;
      points.push(radius * Math.cos(angle), radius * Math.sin(angle), height);
      if (ring) {
        const below = (ring - 1) * around, here = ring * around;
        faces.push(below + i, below + next, here + next, below + i, here + next, here + i);
      }
    }
  });
  return { points, faces };
}

/** @param {Shape} shape @param {number[]} by @returns {Shape} */
function scaled({ points, faces }, by) {
  return { points: points.map((value, i) => value * by[i % 3]), faces };
}

/** @param {number} a @param {number} b @param {number} c @returns {Shape} */
function box(a, b, c) {
  const points = [];
  for (const x of [-a, a]) for (const y of [-b, b]) for (const z of [-c, c]) points.push(x, y, z);
  const sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]];
  return { points, faces: sides.flatMap(([p, q, r, s]) => [p, q, r, p, r, s]) };
}

/** @param {Part} part @returns {Shape} */
function heightfield({ size, columns = 1, heights = [] }) {
  /** @type {number[]} */
  const points = [], /** @type {number[]} */ faces = [], rows = heights.length / columns;
  heights.forEach((height, i) => {
    const column = i % columns, row = Math.floor(i / columns);
    points.push((2 * column / (columns - 1) - 1) * size[0], (2 * row / (rows - 1) - 1) * size[1], height / 1000 * size[2]);
    if (row && column) faces.push(i - columns - 1, i - columns, i, i - columns - 1, i, i - 1);
  });
  return { points, faces };
}

/** @param {Scene["meshes"][string]} mesh @param {number} unit @returns {Shape} */
function mesh({ vertices, faces }, unit) {
  return { points: vertices.map((value) => value * unit), faces };
}

/**
 * For each corner of each face a normal: the mean over the faces there that meet it at less than a crease.
 *
 * @param {Shape} shape
 */
export function normals({ points, faces }) {
  const corner = (/** @type {number} */ i) => [points[3 * i], points[3 * i + 1], points[3 * i + 2]];
  /** @type {{across: number[], unit: number[]}[]} */
  const flat = [];
  /** @type {number[][]} */
  const around = Array.from({ length: points.length / 3 }, () => []); // faces at a point
  for (let f = 0; f < faces.length; f += 3) {
    const [p, q, r] = [faces[f], faces[f + 1], faces[f + 2]];
    const across = cross(minus(corner(q), corner(p)), minus(corner(r), corner(p)));
    for (const i of [p, q, r]) around[i].push(flat.length);
    flat.push({ across, unit: normalised(across) });
  }
  const result = new Float32Array(3 * faces.length);
  faces.forEach((point, i) => {
    const { unit } = flat[Math.floor(i / 3)], sum = [0, 0, 0];
    for (const other of around[point]) {
      if (dot(unit, flat[other].unit) < CREASE) continue;
      for (let k = 0; k < 3; k++) sum[k] += flat[other].across[k];
    }
    result.set(normalised(sum), 3 * i);
  });
  return result;
}
