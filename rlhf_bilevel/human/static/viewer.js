"use strict";
/* Plays clips of training, as film.py and scene.py describe them, each on a canvas of its own.

   All viewers of a page share one WebGL renderer, and a scene's geometry is built once; each viewer's picture is copied
   to its canvas, so that any number of clips can be kept ready. Where WebGL is missing, the same triangles are drawn by
   the 2-D canvas, from back to front. Uses the global THREE (r130); nothing here needs more than "script-src 'self'".

       const viewer = new ClipViewer(element, async (id) => scene);
       await viewer.load(clip);    // shows its first frame
       viewer.show(0.5);           // the middle: 0 is the first frame, 1 the last; in between, poses are interpolated

   Dragging turns the camera about what it follows, the wheel and two fingers zoom, a double click goes back. Viewers
   that are given the same ``view`` object turn together. */

const ClipViewer = (() => {
  const SKY = [0.74, 0.81, 0.88], SUN = normalised([-0.45, -0.6, 1]), CREASE = Math.cos(0.6);
  const POSE = 7; // numbers: x y z, then a quaternion w x y z
  const TILE = 128; // pixels of the ground's pattern, two cells wide
  const WIDEST = 45; // degrees: a wider camera is drawn nearer
  const AWAY = 1.15; // times as far as the scene's camera, so that what moves aside stays in the picture

  // ------------------------------------------------------------------------------------------------ vectors

  function normalised(v) {
    const length = Math.hypot(v[0], v[1], v[2]) || 1;
    return [v[0] / length, v[1] / length, v[2] / length];
  }

  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const minus = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];

  /** The rotation matrix, by rows, of the quaternion at ``at``. */
  function rotation(poses, at) {
    const w = poses[at + 3], x = poses[at + 4], y = poses[at + 5], z = poses[at + 6];
    return [
      1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
      2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
      2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ];
  }

  // ------------------------------------------------------------------------------------------------ shapes

  /** Triangles of a shape about its own origin: points (3 n numbers), faces (3 m point numbers, seen from outside). */
  function surface(part, scene) {
    const [a, b, c] = part.size;
    switch (part.type) {
      case "sphere": return turned(arc(a, 0, -1, 1));
      case "ellipsoid": return scaled(turned(arc(1, 0, -1, 1)), [a, b, c]);
      case "capsule": return turned([...arc(a, -b, -1, 0), ...arc(a, b, 0, 1)]);
      case "cylinder": return turned([[0, -b], [a, -b], [a, b], [0, b]]);
      case "box": return box(a, b, c);
      case "hfield": return hills(part);
      case "mesh": return mesh(scene.meshes[part.mesh], scene.unit);
    }
    return { points: [], faces: [] }; // a plane is drawn as ground
  }

  /** [radius, height] of a part of a circle about height ``middle``, from ``low`` to ``high`` in quarter turns. */
  function arc(radius, middle, low, high, steps = 6) {
    const count = steps * (high - low);
    return Array.from({ length: count + 1 }, (_, i) => {
      const angle = (low + i / steps) * Math.PI / 2;
      return [radius * Math.cos(angle), middle + radius * Math.sin(angle)];
    });
  }

  /** An outline of [radius, height], from below, turned about z. */
  function turned(outline, around = 24) {
    const points = [], faces = [];
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

  function scaled(shape, by) {
    return { points: shape.points.map((value, i) => value * by[i % 3]), faces: shape.faces };
  }

  function box(a, b, c) {
    const points = [];
    for (const x of [-a, a]) for (const y of [-b, b]) for (const z of [-c, c]) points.push(x, y, z);
    const sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]];
    return { points, faces: sides.flatMap(([p, q, r, s]) => [p, q, r, p, r, s]) };
  }

  function hills({ size, columns, heights }) {
    const points = [], faces = [], rows = heights.length / columns;
    heights.forEach((height, i) => {
      const column = i % columns, row = Math.floor(i / columns);
      points.push((2 * column / (columns - 1) - 1) * size[0], (2 * row / (rows - 1) - 1) * size[1], height / 1000 * size[2]);
      if (row && column) faces.push(i - columns - 1, i - columns, i, i - columns - 1, i, i - 1);
    });
    return { points, faces };
  }

  function mesh({ vertices, faces }, unit) {
    return { points: vertices.map((value) => value * unit), faces };
  }

  /** For each corner of each face a normal: the mean over the faces there that meet it at less than a crease. */
  function normals({ points, faces }) {
    const corner = (i) => [points[3 * i], points[3 * i + 1], points[3 * i + 2]];
    const flat = [], around = new Map();
    for (let f = 0; f < faces.length; f += 3) {
      const [p, q, r] = [faces[f], faces[f + 1], faces[f + 2]];
      const across = cross(minus(corner(q), corner(p)), minus(corner(r), corner(p)));
      flat.push({ across, unit: normalised(across) });
      for (const i of [p, q, r]) {
        if (!around.has(i)) around.set(i, []);
        around.get(i).push(flat.length - 1);
      }
    }
    const result = new Float32Array(3 * faces.length);
    faces.forEach((point, i) => {
      const own = flat[Math.floor(i / 3)], sum = [0, 0, 0];
      for (const other of around.get(point)) {
        if (dot(own.unit, flat[other].unit) < CREASE) continue;
        for (let k = 0; k < 3; k++) sum[k] += flat[other].across[k];
      }
      result.set(normalised(sum), 3 * i);
    });
    return result;
  }

  /** The checker of the ground: a cell is a round number of metres, about a fifth of the scene. */
  function cell(extent) {
    const power = 10 ** Math.floor(Math.log10(extent / 5));
    return power * [5, 2, 1].find((step) => step * power <= extent / 5 * 1.0001);
  }

  // ------------------------------------------------------------------------------------------------ clips

  /** Numbers of all frames from a track: one number stands for all, else differences are summed. */
  function unrolled(track, count, unit) {
    const values = new Float32Array(count);
    let sum = 0;
    for (let t = 0; t < count; t++) values[t] = unit * (t < track.length ? (sum += track[t]) : sum);
    return values;
  }

  /** Poses of the parts at a frame that may lie between two. */
  class Motion {
    constructor({ count, unit, quaternion, focus, parts }) {
      this.count = count;
      this._focus = focus.map((track) => unrolled(track, count, unit));
      this._parts = parts.map((part) => part.map((track, k) => unrolled(track, count, k < 3 ? unit : quaternion)));
      this.poses = new Float32Array(POSE * parts.length);
      this.focus = [0, 0, 0];
    }

    at(frame) {
      const i = Math.min(Math.floor(frame), this.count - 1), j = Math.min(i + 1, this.count - 1), share = frame - i;
      const between = (values) => values[i] + share * (values[j] - values[i]);
      this.focus = this._focus.map(between);
      this._parts.forEach((part, number) => {
        const at = POSE * number;
        for (let k = 0; k < POSE; k++) this.poses[at + k] = between(part[k]);
        const length = Math.hypot(...this.poses.subarray(at + 3, at + POSE)) || 1;
        for (let k = 3; k < POSE; k++) this.poses[at + k] /= length;
      });
    }
  }

  // ------------------------------------------------------------------------------------------------ the camera

  class View {
    constructor() {
      this.reset();
    }

    reset() {
      this.turn = this.tilt = 0; // radians away from the scene's own camera
      this.zoom = 1;
    }

    /** Where the camera is, relative to what it looks at. */
    offset({ offset }, aspect) {
      const far = AWAY * Math.hypot(...offset) / this.zoom * Math.max(1, 1 / aspect); // narrow canvases see as much
      const turn = Math.atan2(offset[1], offset[0]) + this.turn;
      const tilt = Math.min(1.55, Math.max(-1.55, Math.asin(offset[2] / Math.hypot(...offset)) + this.tilt));
      return [far * Math.cos(tilt) * Math.cos(turn), far * Math.cos(tilt) * Math.sin(turn), far * Math.sin(tilt)];
    }
  }

  // ------------------------------------------------------------------------------------------------ with WebGL

  let studio; // undefined before it is needed, null where there is no WebGL

  class Studio {
    constructor(canvas, context) {
      this._renderer = new THREE.WebGLRenderer({ canvas, context });
      this._renderer.shadowMap.enabled = true;
      this._renderer.shadowMap.type = THREE.PCFSoftShadowMap;
      this._width = this._height = 0;
      this._scenes = new Map(); // geometries and materials of the newest scenes, by id
      this.lost = false;
      canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); this.lost = true; });
      canvas.addEventListener("webglcontextrestored", () => { this.lost = false; });
    }

    static open() {
      if (typeof THREE === "undefined") return null;
      const canvas = document.createElement("canvas"), wanted = { antialias: true, alpha: false };
      const context = canvas.getContext("webgl2", wanted) || canvas.getContext("webgl", wanted);
      return context ? new Studio(canvas, context) : null;
    }

    /** The picture of ``scene`` from ``camera``, on ``context``'s canvas. */
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

    /** What the parts of a scene are made of. */
    props(id, scene) {
      if (!this._scenes.has(id)) {
        this._scenes.set(id, scene.parts.map((part) => this._prop(part, scene)));
        const [oldest] = this._scenes.keys();
        if (this._scenes.size > 8) {
          for (const { geometry } of this._scenes.get(oldest)) geometry.dispose(); // three makes it anew if it is used
          this._scenes.delete(oldest);
        }
      }
      return this._scenes.get(id);
    }

    _prop(part, scene) {
      const color = new THREE.Color(...part.rgba.slice(0, 3)), alpha = part.rgba[3];
      if (part.type === "plane") return this._ground(part, scene);
      const shape = surface(part, scene), geometry = new THREE.BufferGeometry();
      const points = new Float32Array(3 * shape.faces.length);
      shape.faces.forEach((point, i) => {
        for (let k = 0; k < 3; k++) points[3 * i + k] = shape.points[3 * point + k];
      });
      geometry.setAttribute("position", new THREE.BufferAttribute(points, 3));
      geometry.setAttribute("normal", new THREE.BufferAttribute(normals(shape), 3));
      const side = part.type === "mesh" ? THREE.DoubleSide : THREE.FrontSide; // simplified ones may have turned faces
      const look = { color, side, transparent: alpha < 1, opacity: alpha };
      return { geometry, material: new THREE.MeshPhongMaterial({ ...look, shininess: 20, specular: 0x222222 }) };
    }

    _ground(part, scene) {
      const step = cell(scene.extent), wide = part.size.map((half) => half || 40 * scene.extent);
      const geometry = new THREE.PlaneGeometry(2 * wide[0], 2 * wide[1]);
      const place = geometry.getAttribute("position"), texture = geometry.getAttribute("uv");
      for (let i = 0; i < place.count; i++) texture.setXY(i, place.getX(i) / (2 * step), place.getY(i) / (2 * step));
      const tones = checker(part.rgba.slice(0, 3)), tiles = new Uint8Array(4 * TILE * TILE);
      for (let i = 0; i < TILE * TILE; i++) {
        const odd = (i % TILE < TILE / 2) !== (i < TILE * TILE / 2);
        tiles.set([...tones[Number(odd)], 255], 4 * i);
      }
      const map = new THREE.DataTexture(tiles, TILE, TILE, THREE.RGBAFormat);
      map.wrapS = map.wrapT = THREE.RepeatWrapping;
      map.magFilter = THREE.LinearFilter;
      map.minFilter = THREE.LinearMipmapLinearFilter;
      map.generateMipmaps = true;
      map.anisotropy = 8;
      map.needsUpdate = true;
      return { geometry, material: new THREE.MeshLambertMaterial({ map }), step: 2 * step };
    }
  }

  /** The two tones of the ground, red, green and blue from 0 to 255: of its own colour, but never dark. */
  function checker(colour) {
    return [0.76, 1].map((by) => colour.map((value, k) => 255 * Math.min(1, by * (0.45 * value + 0.45 * SKY[k]))));
  }

  /** A clip on the shared renderer. */
  class Lit {
    constructor(id, scene, motion) {
      const far = Math.hypot(...scene.camera.offset);
      this._camera = new THREE.PerspectiveCamera(Math.min(WIDEST, scene.camera.fovy), 1, far / 50, far * 60);
      this._camera.up.set(0, 0, 1);
      this._scene = new THREE.Scene();
      this._scene.background = new THREE.Color(...SKY);
      this._scene.fog = new THREE.Fog(this._scene.background, far * 2, far * 12);
      this._scene.add(new THREE.HemisphereLight(0xffffff, 0x9a938c, 0.78));
      this._sun = new THREE.DirectionalLight(0xffffff, 0.42);
      this._sun.castShadow = true;
      this._sun.shadow.mapSize.set(2048, 2048);
      this._sun.shadow.normalBias = far / 300;
      const wide = 1.2 * far, box = this._sun.shadow.camera;
      Object.assign(box, { left: -wide, right: wide, top: wide, bottom: -wide, near: 0.1 * far, far: 6 * far });
      this._scene.add(this._sun, this._sun.target);
      this._sunAway = 3 * far;
      this._of = scene;
      this._motion = motion;
      this._bodies = studio.props(id, scene).map((prop, number) => {
        const body = new THREE.Mesh(prop.geometry, prop.material);
        body.castShadow = !prop.step && !scene.parts[number].mark;
        body.receiveShadow = !scene.parts[number].mark;
        this._scene.add(body);
        if (scene.parts[number].mark) body.add(this._ghost(prop));
        return { body, prop };
      });
    }

    /** A goal is seen through what hides it. */
    _ghost({ geometry, material }) {
      const look = { color: material.color, transparent: true, opacity: 0.45, depthTest: false, fog: false };
      const ghost = new THREE.Mesh(geometry, new THREE.MeshBasicMaterial(look));
      ghost.renderOrder = 1;
      return ghost;
    }

    paint(context, view) {
      const { poses, focus } = this._motion, { width, height } = context.canvas;
      this._bodies.forEach(({ body, prop }, number) => {
        const [x, y, z, qw, qx, qy, qz] = poses.subarray(POSE * number, POSE * (number + 1));
        body.position.set(x, y, z);
        body.quaternion.set(qx, qy, qz, qw);
        if (prop.step && !this._of.parts[number].size[0]) this._follow(body, prop.step, focus);
      });
      const [x, y, z] = focus, [dx, dy, dz] = view.offset(this._of.camera, width / height);
      this._camera.aspect = width / height;
      this._camera.updateProjectionMatrix();
      this._camera.position.set(x + dx, y + dy, z + dz);
      this._camera.lookAt(x, y, z);
      this._sun.target.position.set(x, y, z);
      this._sun.position.set(...SUN.map((value, k) => focus[k] + this._sunAway * value));
      studio.draw(this._scene, this._camera, context);
    }

    /** Ground without an end goes along, in whole steps, so that its pattern stays where it is in the world. */
    _follow(body, step, focus) {
      const ahead = new THREE.Vector3(...focus).sub(body.position).applyQuaternion(body.quaternion.clone().invert());
      body.translateX(step * Math.round(ahead.x / step)).translateY(step * Math.round(ahead.y / step));
    }
  }

  // ------------------------------------------------------------------------------------------------ without

  /** A clip on a 2-D canvas: the same triangles, the furthest first. */
  class Flat {
    constructor(id, scene, motion) {
      this._of = scene;
      this._motion = motion;
      this._shapes = scene.parts.map((part) => surface(part, scene));
    }

    paint(context, view) {
      const { width, height } = context.canvas, { camera } = this._of;
      const from = view.offset(camera, width / height), back = normalised(from);
      const right = normalised(cross([0, 0, 1], back)), up = cross(back, right);
      const focal = height / 2 / Math.tan(Math.min(WIDEST, camera.fovy) * Math.PI / 360), near = Math.hypot(...from) / 50;
      const eye = from.map((value, k) => value + this._motion.focus[k]);
      /** [pixels right, pixels down, distance]. */
      const seen = (point) => {
        const away = minus(point, eye), far = -dot(away, back), scale = focal / Math.max(far, near);
        return [width / 2 + scale * dot(away, right), height / 2 - scale * dot(away, up), far];
      };
      context.fillStyle = css(SKY);
      context.fillRect(0, 0, width, height);
      const faces = [];
      this._of.parts.forEach((part, number) => {
        if (part.type === "plane") this._ground(context, part, number, seen, near);
        else this._collect(part, number, seen, near, eye, faces);
      });
      faces.sort((a, b) => b.far - a.far);
      for (const { corners, colour } of faces) fill(context, corners, colour);
    }

    _collect(part, number, seen, near, eye, faces) {
      const { points, faces: corners } = this._shapes[number], placed = this._placed(number, points);
      const pictured = placed.map(seen), colour = part.rgba.slice(0, 3);
      for (let f = 0; f < corners.length; f += 3) {
        const three = [corners[f], corners[f + 1], corners[f + 2]], [p, q, r] = three.map((i) => placed[i]);
        const out = cross(minus(q, p), minus(r, p));
        if (dot(out, minus(eye, p)) <= 0 || three.some((i) => pictured[i][2] < near)) continue;
        const light = 0.62 + 0.38 * dot(normalised(out), SUN), lit = colour.map((value) => light * value);
        const far = part.mark ? 0 : (pictured[three[0]][2] + pictured[three[1]][2] + pictured[three[2]][2]) / 3;
        faces.push({ far, corners: three.map((i) => pictured[i]), colour: css(lit, part.mark ? 0.6 : part.rgba[3]) });
      }
    }

    _ground(context, part, number, seen, near) {
      const step = cell(this._of.extent), middle = this._of.camera, reach = Math.ceil(3 * Math.hypot(...middle.offset) / step);
      const turn = rotation(this._motion.poses, POSE * number), away = minus(this._motion.focus, this._motion.poses.subarray(POSE * number, POSE * number + 3));
      const about = [0, 1].map((k) => Math.round((turn[k] * away[0] + turn[3 + k] * away[1] + turn[6 + k] * away[2]) / step));
      const [dark, light] = checker(part.rgba.slice(0, 3)).map((tone) => css(tone.map((value) => value / 255)));
      const held = (value, half) => (half ? Math.min(half, Math.max(-half, value)) : value);
      for (let i = about[0] - reach; i < about[0] + reach; i++) {
        for (let j = about[1] - reach; j < about[1] + reach; j++) {
          const flat = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]].flatMap(([x, y]) => [held(x * step, part.size[0]), held(y * step, part.size[1]), 0]);
          const corners = this._placed(number, flat).map(seen);
          if (corners.every((corner) => corner[2] > near)) fill(context, corners, (i + j) % 2 ? light : dark);
        }
      }
    }

    /** Points (3 n numbers) of a part, in the world. */
    _placed(number, points) {
      const at = POSE * number, poses = this._motion.poses, m = rotation(poses, at), placed = [];
      for (let i = 0; i < points.length; i += 3) {
        const x = points[i], y = points[i + 1], z = points[i + 2];
        placed.push([0, 1, 2].map((k) => poses[at + k] + m[3 * k] * x + m[3 * k + 1] * y + m[3 * k + 2] * z));
      }
      return placed;
    }
  }

  function css(colour, alpha = 1) {
    return `rgba(${colour.map((value) => Math.round(255 * Math.min(1, value))).join(",")},${alpha})`;
  }

  /** A polygon, a little larger than it is, which closes the seams between neighbours. */
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

  // ------------------------------------------------------------------------------------------------ pictures

  /** A clip of pictures that an environment drew itself. */
  class Slides {
    static async open(clip) {
      const slides = new Slides();
      slides.pictures = await Promise.all(clip.frames.map(async (source) => {
        const picture = new Image();
        picture.src = source;
        await picture.decode();
        return picture;
      }));
      return slides;
    }

    at(frame) {
      this._now = this.pictures[Math.round(frame)];
    }

    paint(context, view) {
      const { width, height } = context.canvas, picture = this._now;
      const scale = view.zoom * Math.min(width / picture.width, height / picture.height);
      const [wide, high] = [scale * picture.width, scale * picture.height];
      context.clearRect(0, 0, width, height);
      context.drawImage(picture, (width - wide) / 2, (height - high) / 2, wide, high);
    }
  }

  // ------------------------------------------------------------------------------------------------ the viewer

  return class ClipViewer {
    /** In ``container``, whose size it takes. ``scenes`` is asked for a clip's scene by its id. */
    constructor(container, scenes) {
      if (studio === undefined) studio = Studio.open();
      this.frames = this.fps = 0;
      this.view = new View();
      this._scenes = scenes;
      this._share = this._loads = 0;
      this._painted = ""; // what is on the canvas
      this._detail = 1;
      this._motion = this._painter = null;
      this._pointers = new Map();
      this.canvas = document.createElement("canvas");
      Object.assign(this.canvas.style, { display: "block", width: "100%", height: "100%", touchAction: "pan-y" });
      container.append(this.canvas);
      this._context = this.canvas.getContext("2d");
      this._resized = new ResizeObserver(() => this._fit());
      this._resized.observe(this.canvas);
      this._listen();
    }

    /** Pixels of the canvas along a pixel of the page: less is drawn faster. */
    set detail(detail) {
      this._detail = detail;
      this._fit();
    }

    /** Whether clips are drawn without WebGL. */
    get fallback() {
      return !studio || studio.lost;
    }

    /** Shows the first frame of ``clip``. Of two calls the later one counts. Rejected where its scene cannot be had. */
    async load(clip) {
      const load = ++this._loads;
      const [slides, scene] = await Promise.all([
        clip.kind === "frames" ? Slides.open(clip) : null,
        clip.kind === "frames" ? null : this._scenes(clip.scene),
      ]);
      if (load !== this._loads) return;
      this._clip = clip;
      this._scene = scene;
      this._motion = slides || new Motion(clip.frames);
      this._painter = slides;
      this.frames = slides ? clip.frames.length : clip.frames.count;
      this.fps = clip.fps;
      this._fit();
      this.show(0);
    }

    /** The clip at ``share`` of its length, from 0 to 1. */
    show(share) {
      this._share = Math.min(1, Math.max(0, share));
      if (!this._motion || !this.canvas.width) return;
      this._motion.at(this._share * (this.frames - 1));
      this._paint();
    }

    dispose() {
      this._loads++;
      this._motion = this._painter = null;
      this._resized.disconnect();
      this.canvas.remove();
    }

    _paint() {
      const { turn, tilt, zoom } = this.view, now = [this._loads, this._share, turn, tilt, zoom, this.fallback].join();
      if (now === this._painted) return;
      this._painted = now;
      if (this._scene && this._painter instanceof (this.fallback ? Lit : Flat)) this._painter = null; // WebGL came or went
      this._painter ||= new (this.fallback ? Flat : Lit)(this._clip.scene, this._scene, this._motion);
      this._painter.paint(this._context, this.view);
    }

    _fit() {
      const sharp = this._detail * Math.min(2, window.devicePixelRatio || 1), { clientWidth, clientHeight } = this.canvas;
      const [width, height] = [Math.round(sharp * clientWidth), Math.round(sharp * clientHeight)];
      if (width === this.canvas.width && height === this.canvas.height) return;
      this.canvas.width = width; // which wipes it
      this.canvas.height = height;
      this._painted = "";
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
        const apart = pointers.size === 2 ? spread() : 0;
        pointers.set(event.pointerId, [event.clientX, event.clientY]);
        if (apart) this._zoom(spread() / apart);
        else this._turn(event.clientX - before[0], event.clientY - before[1]);
      });
      for (const end of ["pointerup", "pointercancel"]) {
        canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
      }
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        this._zoom(Math.exp(-event.deltaY / 500));
      }, { passive: false });
      canvas.addEventListener("dblclick", () => {
        this.view.reset();
        this.show(this._share);
      });
    }

    _turn(right, down) {
      const radians = Math.PI / Math.max(200, this.canvas.clientHeight);
      this.view.turn -= right * radians;
      this.view.tilt = Math.min(3, Math.max(-3, this.view.tilt + down * radians));
      this.show(this._share);
    }

    _zoom(by) {
      this.view.zoom = Math.min(10, Math.max(0.1, this.view.zoom * by));
      this.show(this._share);
    }
  };
})();
