/**
 * Vectors of three numbers, and the rotation of a quaternion.
 *
 * @typedef {ArrayLike<number>} Vector
 */

/** @param {Vector} a @param {Vector} b */
export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

/** @param {Vector} a @param {Vector} b */
export const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

/** @param {Vector} a @param {Vector} b */
export const minus = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];

/** @param {Vector} v */
export const norm = (v) => Math.hypot(v[0], v[1], v[2]);

/** Of length 1; of a vector of length 0 itself. @param {Vector} v */
export function normalised(v) {
  const length = norm(v) || 1;
  return [v[0] / length, v[1] / length, v[2] / length];
}

/** The rotation matrix, by rows, of a quaternion w, x, y, z. @param {Vector} quaternion */
export function rotation(quaternion) {
  const [w, x, y, z] = Array.from(quaternion);
  return [
    1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
    2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
    2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
  ];
}
