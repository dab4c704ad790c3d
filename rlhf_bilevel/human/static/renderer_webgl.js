/**
 * Clips drawn by three.js.
 *
 * All viewers of a page share one WebGL renderer, and a scene's geometry is built once; each viewer's picture is copied to
 * its canvas, so that any number of clips can be kept ready.
 */

import * as THREE from "./three.module.js";
import { fieldOfView } from "./camera.js";
import { cell, checker, SKY, SUN } from "./looks.js";
import { normals, triangles } from "./shapes.js";
import { norm } from "./vectors.js";

/**
 * @typedef {import("./camera.js").Camera} Camera
 * @typedef {import("./scene.js").Motion} Motion
 * @typedef {import("./scene.js").Part} Part
 * @typedef {import("./scene.js").Scene} Scene
 *
 * @typedef {object} Prop what a part is made of
 * @property {THREE.BufferGeometry} geometry
 * @property {THREE.MeshPhongMaterial | THREE.MeshLambertMaterial} material
 * @property {number} [period] of the ground's pattern, metres; only ground has one
 */

const TILE = 128; // pixels of the ground's pattern, two cells wide
const SCENES = 8; // whose geometry is kept

THREE.ColorManagement.enabled = false; // colours are MuJoCo's own, and lights made for them

export class Studio {
  /** @param {HTMLCanvasElement} canvas @param {WebGL2RenderingContext} context */
  constructor(canvas, context) {
    this._renderer = new THREE.WebGLRenderer({ canvas, context });
    this._renderer.outputColorSpace = THREE.LinearSRGBColorSpace;
    this._renderer.shadowMap.enabled = true;
    this._width = this._height = 0;
    /** @type {Map<string, Prop[]>} */
    this._scenes = new Map(); // the newest, by id
    this.lost = false;
    canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); this.lost = true; });
    canvas.addEventListener("webglcontextrestored", () => { this.lost = false; });
  }

  /** Null where there is no WebGL. */
  static open() {
    const canvas = document.createElement("canvas");
    const context = canvas.getContext("webgl2", { antialias: true, alpha: false });
    return context && new Studio(canvas, context);
  }

  /**
   * The picture of a scene, on the context's canvas.
   *
   * @param {THREE.Scene} scene @param {THREE.Camera} camera @param {CanvasRenderingContext2D} context
   */
  draw(scene, camera, context) {
    const { width, height } = context.canvas, renderer = this._renderer;
    if (width > this._width || height > this._height) { // it only grows: viewers of all sizes take turns
      this._width = Math.max(width, this._width);
      this._height = Math.max(height, this._height);
      renderer.setSize(this._width, this._height, false);
    }
    renderer.setViewport(0, 0, width, height);
    renderer.render(scene, camera);
    context.drawImage(renderer.domElement, 0, this._height - height, width, height, 0, 0, width, height);
  }

  /** One for each part. @param {string} id @param {Scene} scene */
  props(id, scene) {
    const kept = this._scenes.get(id);
    if (kept) return kept;
    const made = scene.parts.map((part) => (part.type === "plane" ? ground(part, scene) : solid(part, scene)));
    this._scenes.set(id, made);
    if (this._scenes.size > SCENES) {
      const [[oldest, props]] = this._scenes;
      for (const { geometry } of props) geometry.dispose(); // three.js makes it anew if it is used
      this._scenes.delete(oldest);
    }
    return made;
  }
}

/** @param {Part} part @param {Scene} scene @returns {Prop} */
function solid(part, scene) {
  const shape = triangles(part, scene), geometry = new THREE.BufferGeometry();
  const points = new Float32Array(3 * shape.faces.length);
  shape.faces.forEach((point, i) => {
    for (let k = 0; k < 3; k++) points[3 * i + k] = shape.points[3 * point + k];
  });
  geometry.setAttribute("position", new THREE.BufferAttribute(points, 3));
  geometry.setAttribute("normal", new THREE.BufferAttribute(normals(shape), 3));
  const material = new THREE.MeshPhongMaterial({
    color: new THREE.Color().fromArray(part.rgba),
    transparent: part.rgba[3] < 1,
    opacity: part.rgba[3],
    shininess: 20,
    specular: 0x222222,
    side: part.type === "mesh" ? THREE.DoubleSide : THREE.FrontSide, // simplified ones may have turned faces
  });
  return { geometry, material };
}

/** @param {Part} part @param {Scene} scene @returns {Prop} */
function ground(part, scene) {
  const step = cell(scene.extent), [wide, high] = part.size.map((half) => half || 40 * scene.extent);
  const geometry = new THREE.PlaneGeometry(2 * wide, 2 * high);
  const place = geometry.getAttribute("position"), texture = geometry.getAttribute("uv");
  for (let i = 0; i < place.count; i++) texture.setXY(i, place.getX(i) / (2 * step), place.getY(i) / (2 * step));
  const tones = checker(part.rgba.slice(0, 3)), tiles = new Uint8Array(4 * TILE * TILE);
  for (let i = 0; i < TILE * TILE; i++) {
    const odd = (i % TILE < TILE / 2) !== (i < TILE * TILE / 2);
    tiles.set([...tones[Number(odd)], 1].map((value) => 255 * value), 4 * i);
  }
  const map = new THREE.DataTexture(tiles, TILE, TILE, THREE.RGBAFormat);
  map.wrapS = map.wrapT = THREE.RepeatWrapping;
  map.magFilter = THREE.LinearFilter;
  map.minFilter = THREE.LinearMipmapLinearFilter;
  map.generateMipmaps = true;
  map.anisotropy = 8;
  map.needsUpdate = true;
  return { geometry, material: new THREE.MeshLambertMaterial({ map }), period: 2 * step };
}

/** A clip on the shared renderer. */
export class WebGLClip {
  /** @param {Studio} studio @param {string} id of the scene @param {Scene} scene @param {Motion} motion */
  constructor(studio, id, scene, motion) {
    this._studio = studio;
    this._of = scene;
    this._motion = motion;
    const far = norm(scene.camera.offset);
    this._camera = new THREE.PerspectiveCamera(fieldOfView(scene.camera), 1, far / 50, far * 60);
    this._camera.up.set(0, 0, 1);
    this._scene = new THREE.Scene();
    const sky = this._scene.background = new THREE.Color().fromArray(SKY);
    this._scene.fog = new THREE.Fog(sky, far * 2, far * 12);
    this._scene.add(new THREE.HemisphereLight(0xffffff, 0x9a938c, 0.78 * Math.PI));
    this._sun = new THREE.DirectionalLight(0xffffff, 0.42 * Math.PI);
    this._sun.castShadow = true;
    this._sun.shadow.mapSize.set(2048, 2048);
    this._sun.shadow.normalBias = far / 300;
    const wide = 1.2 * far, box = this._sun.shadow.camera;
    Object.assign(box, { left: -wide, right: wide, top: wide, bottom: -wide, near: 0.1 * far, far: 6 * far });
    this._scene.add(this._sun, this._sun.target);
    this._sunAway = 3 * far;
    this._bodies = studio.props(id, scene).map((prop, number) => {
      const body = new THREE.Mesh(prop.geometry, prop.material), { mark } = scene.parts[number];
      body.castShadow = !prop.period && !mark;
      body.receiveShadow = !mark;
      this._scene.add(body);
      if (mark) body.add(ghost(prop));
      return { body, period: scene.parts[number].size[0] ? 0 : prop.period };
    });
  }

  /** @param {CanvasRenderingContext2D} context @param {Camera} camera */
  draw(context, camera) {
    const { focus } = this._motion, aspect = context.canvas.width / context.canvas.height;
    this._bodies.forEach(({ body, period }, number) => {
      const [w, x, y, z] = this._motion.quaternion(number);
      body.position.fromArray(this._motion.position(number));
      body.quaternion.set(x, y, z, w);
      if (period) follow(body, period, focus);
    });
    const eye = camera.offset(this._of.camera, aspect).map((value, k) => focus[k] + value);
    this._camera.aspect = aspect;
    this._camera.updateProjectionMatrix();
    this._camera.position.fromArray(eye);
    this._camera.lookAt(focus[0], focus[1], focus[2]);
    this._sun.target.position.fromArray(focus);
    this._sun.position.fromArray(SUN.map((value, k) => focus[k] + this._sunAway * value));
    this._studio.draw(this._scene, this._camera, context);
  }
}

/** A goal is seen through what hides it. @param {Prop} prop */
function ghost({ geometry, material }) {
  const look = { color: material.color, transparent: true, opacity: 0.45, depthTest: false, fog: false };
  const seen = new THREE.Mesh(geometry, new THREE.MeshBasicMaterial(look));
  seen.renderOrder = 1;
  return seen;
}

/**
 * Ground without an end goes along, in whole periods, so that its pattern stays where it is in the world.
 *
 * @param {THREE.Mesh} body @param {number} period @param {number[]} focus
 */
function follow(body, period, focus) {
  const ahead = new THREE.Vector3().fromArray(focus).sub(body.position).applyQuaternion(body.quaternion.clone().invert());
  body.translateX(period * Math.round(ahead.x / period)).translateY(period * Math.round(ahead.y / period));
}
