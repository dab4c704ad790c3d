/** Clips and their scenes, each asked for once. */

import { getClip, getScene } from "./api.js";

const SCENES = 32; // that are kept: a scene may be as new as an episode

/** @type {Map<string, Promise<import("./scene.js").Scene>>} */
const scenes = new Map();
/** @type {Map<string, Promise<import("./scene.js").Clip>>} */
const clips = new Map();

/**
 * The same promise for the same id; what failed is asked again.
 *
 * @template T
 * @param {Map<string, Promise<T>>} kept @param {string} id @param {(id: string) => Promise<T>} get @returns {Promise<T>}
 */
function cached(kept, id, get) {
  const found = kept.get(id);
  if (found) return found;
  const asked = get(id).catch((error) => (kept.delete(id), Promise.reject(error)));
  kept.set(id, asked);
  return asked;
}

/** @param {string} id */
export const sceneOf = (id) => cached(scenes, id, getScene);
/** @param {string} id */
export const clipOf = (id) => cached(clips, id, getClip);

/** Forgets all clips but these, and the oldest scenes: memory stays flat. @param {Set<string>} needed */
export function keepOnly(needed) {
  for (const id of clips.keys()) if (!needed.has(id)) clips.delete(id);
  for (const id of scenes.keys()) if (scenes.size > SCENES) scenes.delete(id);
}
