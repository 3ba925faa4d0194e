// The model on the page's canvas. The camera is that of `orbit` in renderers/camera.py, and the model is brought to
// radius 1 as by `normalised`; unlit colours are drawn as our own renderer draws them: linear light, sRGB out, no tone
// mapping.

import * as THREE from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
import { Shadow, studio } from "./light.js";
import { dressed, MAPS, TEXTURES } from "./materials.js";

const FOV = 40, DISTANCE = 3.1, ELEVATION = 15; // degrees, radii, degrees
const MARGIN = 64; // pixels above and below the picture of that field of view, where the controls are
const COLLIDER = /[-_](conv)?col(only)?(_\d+)?$|^U(CX|BX|SP|CP)_/i; // as Godot and Unreal name them

export const VIEWS = { front: [0, ELEVATION], side: [90, ELEVATION], back: [180, ELEVATION], top: [0, 89.9] }; // degrees

export class Model {
  constructor(canvas) {
    this.canvas = canvas;
    this.renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true });
    this.renderer.toneMapping = THREE.NeutralToneMapping; // for materials that light falls on, and for no others
    this.renderer.setClearColor(0, 0);
    this.scene = new THREE.Scene();
    this.camera = new THREE.PerspectiveCamera(FOV, 1, 0.02, 60);
    this.controls = new OrbitControls(this.camera, canvas);
    Object.assign(this.controls, { enableDamping: true, dampingFactor: 0.12, minDistance: 0.4, maxDistance: 12, autoRotateSpeed: 3 });
    this.controls.addEventListener("change", () => this.draw());
    this.state = { map: "colour", light: true, wireframe: false, collider: false, dark: false };
    this.scene.environment = studio(this.renderer);
    this.scene.environmentIntensity = 0.72;
    const key = new THREE.DirectionalLight(0xffffff, 0.7);
    key.position.set(-1.5, 3, 2.5);
    this.camera.add(key);
    this.scene.add(this.camera);
    this.shadow = new Shadow();
    this.scene.add(this.shadow.plane);
    this.parts = [];
    this.resized = new ResizeObserver(() => this.fit());
    this.resized.observe(canvas.parentElement);
    canvas.addEventListener("keydown", event => this.key(event));
    canvas.addEventListener("webglcontextrestored", () => this.draw());
    this.look(30, ELEVATION);
    this.fit();
  }

  close() {
    this.resized.disconnect();
    this.controls.dispose();
    cancelAnimationFrame(this.pending);
    this.clear();
    this.renderer.dispose();
    this.renderer.forceContextLoss();
  }

  // Show a file, and files with its colliders; what is shown before is kept when that fails.
  async load(address, colliders = []) {
    const loader = new GLTFLoader();
    const [model, ...extra] = await Promise.all([address, ...colliders].map(each => loader.loadAsync(each)));
    const group = new THREE.Group();
    group.add(model.scene);
    group.updateMatrixWorld(true);
    const parts = [];
    const add = (root, all) => root.traverse(node => {
      if (node.isMesh && node.geometry.attributes.position) parts.push({ mesh: node, collider: all || isCollider(node) });
    });
    add(model.scene, false);
    for (const each of extra) {
      group.add(each.scene);
      add(each.scene, true);
    }
    group.updateMatrixWorld(true);
    if (!parts.some(part => !part.collider)) parts.forEach(part => (part.collider = false));
    const own = framing(parts.filter(part => !part.collider));
    const frame = (this.framed ??= own);
    if (!own) throw new Error("it has no triangles");
    this.clear();
    this.group = group;
    group.scale.setScalar(frame.scale);
    group.position.copy(frame.centre).multiplyScalar(-frame.scale);
    this.parts = parts.map(part => dressed(part));
    this.scene.add(group);
    this.apply();
    this.figures = { ...measured(this.parts.filter(part => !part.collider)), size: own.size };
  }

  clear() {
    for (const { mesh, materials } of this.parts) {
      mesh.geometry.dispose();
      for (const each of Object.values(materials).flat()) {
        for (const value of Object.values(each)) if (value?.isTexture) value.dispose();
        each.dispose();
      }
    }
    if (this.group) this.scene.remove(this.group);
    this.parts = [];
  }

  set(changes) {
    Object.assign(this.state, changes);
    this.apply();
  }

  // The maps that the file has, and the two that every mesh has.
  maps() {
    const own = this.parts.filter(part => !part.collider).flatMap(part => [part.own].flat());
    return Object.keys(MAPS).filter(name =>
      !(name in TEXTURES) || name === "colour" || own.some(material => material[TEXTURES[name][0]]));
  }

  hasCollider() {
    return this.parts.some(part => part.collider);
  }

  // For the UV layout: geometry, and the picture of the map that is shown, or of the colours.
  surfaces() {
    const property = TEXTURES[this.state.map]?.[0] ?? "map";
    return this.parts.filter(part => !part.collider).map(({ mesh, own }) => {
      const material = [own].flat()[0], texture = material[property] ?? material.map;
      return { name: mesh.name || material.name, geometry: mesh.geometry, texture, set: texture?.channel ?? 0 };
    });
  }

  apply() {
    const { map, light, wireframe, collider, dark } = this.state;
    for (const part of this.parts) {
      if (part.collider) {
        part.mesh.visible = collider;
        continue;
      }
      const name = map === "colour" && light ? "lit" : map;
      part.mesh.material = part.materials[name] ?? part.materials.colour;
      part.wires.visible = wireframe;
      part.wires.material.color.set(dark ? 0xffffff : 0x000000);
    }
    this.shadow.plane.visible = light && ["colour", "clay"].includes(map);
    if (this.group && this.shadow.plane.visible) {
      this.shadow.cast(this.renderer, this.scene, this.group, this.parts);
    }
    this.draw();
  }

  look(azimuth, elevation, distance = DISTANCE) {
    this.controls.target.set(0, 0, 0);
    this.camera.position.setFromSphericalCoords(
      distance, THREE.MathUtils.degToRad(90 - elevation), THREE.MathUtils.degToRad(azimuth));
    this.controls.update();
    this.draw();
  }

  turn(on) {
    this.controls.autoRotate = on;
    this.draw();
  }

  key(event) {
    const { target } = this.controls, { position } = this.camera;
    const around = new THREE.Spherical().setFromVector3(position.clone().sub(target));
    const step = 0.12;
    if (event.key === "ArrowLeft") around.theta -= step;
    else if (event.key === "ArrowRight") around.theta += step;
    else if (event.key === "ArrowUp") around.phi -= step;
    else if (event.key === "ArrowDown") around.phi += step;
    else if (event.key === "+" || event.key === "=") around.radius /= 1.1;
    else if (event.key === "-") around.radius *= 1.1;
    else if (event.key === "0" || event.key === "Home") return void (event.preventDefault(), this.look(30, ELEVATION));
    else return;
    event.preventDefault();
    around.radius = THREE.MathUtils.clamp(around.radius, this.controls.minDistance, this.controls.maxDistance);
    position.setFromSpherical(around.makeSafe()).add(target);
    this.controls.update();
    this.draw();
  }

  // The field of view is that of the largest square between the margins, in the middle.
  fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas.parentElement;
    if (!width || !height) return;
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    const square = Math.max(1, Math.min(width, height - 2 * MARGIN)), half = Math.tan(THREE.MathUtils.degToRad(FOV / 2));
    this.camera.fov = THREE.MathUtils.radToDeg(2 * Math.atan((half * height) / square));
    this.camera.updateProjectionMatrix();
    this.draw();
  }

  draw() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.controls.update(); // asks for the next picture itself while anything moves
      if (this.controls.autoRotate) this.draw();
      this.renderer.render(this.scene, this.camera);
    });
  }

  // A PNG of what is seen, its background transparent.
  picture() {
    this.renderer.render(this.scene, this.camera);
    return new Promise(done => this.canvas.toBlob(done, "image/png"));
  }
}

function isCollider(node) {
  return COLLIDER.test(node.userData.name ?? node.name) || COLLIDER.test(node.parent?.userData.name ?? node.parent?.name ?? "");
}

// Centred on the bounding box, the farthest vertex at radius 1.
function framing(parts) {
  const box = new THREE.Box3(), point = new THREE.Vector3();
  const each = act => parts.forEach(({ mesh }) => {
    const position = mesh.geometry.attributes.position;
    for (let i = 0; i < position.count; i++) act(point.fromBufferAttribute(position, i).applyMatrix4(mesh.matrixWorld));
  });
  each(found => box.expandByPoint(found));
  const centre = box.getCenter(new THREE.Vector3());
  let radius = 0;
  each(found => (radius = Math.max(radius, found.distanceTo(centre))));
  return radius > 0 && Number.isFinite(radius) ? { centre, scale: 1 / radius, size: box.getSize(point).toArray() } : null;
}

// What a user wants to know of a file: its triangles, and what it is made of.
function measured(parts) {
  const materials = new Set(), pictures = new Map();
  let triangles = 0, vertices = 0;
  for (const { mesh, own } of parts) {
    const { index, attributes } = mesh.geometry;
    triangles += (index ? index.count : attributes.position.count) / 3;
    vertices += attributes.position.count;
    for (const material of [own].flat()) {
      materials.add(material);
      for (const [name, [property]] of Object.entries(TEXTURES)) {
        const image = material[property]?.image;
        if (image) pictures.set(name, [image.width, image.height]);
      }
    }
  }
  const first = [...materials][0];
  return {
    triangles: Math.floor(triangles), vertices, materials: materials.size, pictures: [...pictures],
    finish: first && "roughness" in first ? { roughness: first.roughness, metalness: first.metalness } : null,
  };
}
