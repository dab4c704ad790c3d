/** How a scene looks, whatever draws it: colours are red, green and blue from 0 to 1. */

import { normalised } from "./vectors.js";

export const SKY = [0.74, 0.81, 0.88];
export const SUN = normalised([-0.45, -0.6, 1]); // where it is

/** The two tones of the ground: of its own colour, but never dark. @param {number[]} colour */
export function checker(colour) {
  return [0.76, 1].map((by) => colour.map((value, k) => Math.min(1, by * (0.45 * value + 0.45 * SKY[k]))));
}

/** Metres of a cell of the ground's checker: a round number, about a fifth of the scene. @param {number} extent */
export function cell(extent) {
  const power = 10 ** Math.floor(Math.log10(extent / 5));
  return power * ([5, 2].find((step) => step * power <= (extent / 5) * 1.0001) ?? 1);
}
