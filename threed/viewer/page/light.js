// Light and shadow of the stage.

import * as THREE from "three";

const SHADOW = 0.5, REACH = 0.25, GROUND = 2.2; // as in threed/pictures.py; half the side of the floor

// A soft room of light, as a few texels: a bright window to the upper left, a dimmer one behind, a floor.
export function studio(renderer) {
  const wide = 64, tall = 32, texels = new Uint16Array(4 * wide * tall);
  const light = new THREE.Vector3(), windows = [[[-0.6, 0.75, 0.6], 0.9, 5.5], [[0.8, 0.35, -0.6], 0.93, 4]];
  for (let row = 0; row < tall; row++) {
    for (let column = 0; column < wide; column++) {
      light.setFromSphericalCoords(1, Math.PI * (1 - (row + 0.5) / tall), 2 * Math.PI * (column + 0.5) / wide);
      let level = light.y > 0 ? 0.55 + 0.45 * light.y : 0.5 + 0.2 * light.y;
      for (const [[x, y, z], edge, power] of windows) {
        const near = (light.x * x + light.y * y + light.z * z) / Math.hypot(x, y, z);
        level += power * THREE.MathUtils.smoothstep(near, edge - 0.1, edge + 0.05);
      }
      const half = THREE.DataUtils.toHalfFloat(level);
      texels.set([half, half, half, THREE.DataUtils.toHalfFloat(1)], 4 * (row * wide + column));
    }
  }
  const picture = new THREE.DataTexture(texels, wide, tall, THREE.RGBAFormat, THREE.HalfFloatType);
  Object.assign(picture, { mapping: THREE.EquirectangularReflectionMapping, minFilter: THREE.LinearFilter, magFilter: THREE.LinearFilter });
  picture.needsUpdate = true;
  const maker = new THREE.PMREMGenerator(renderer), made = maker.fromEquirectangular(picture).texture;
  picture.dispose();
  maker.dispose();
  return made;
}

// The shadow of contact with the floor: the model seen from below, darker the nearer it is, and blurred.
export class Shadow {
  constructor() {
    this.target = new THREE.WebGLRenderTarget(256, 256, { generateMipmaps: true, minFilter: THREE.LinearMipmapLinearFilter });
    this.camera = new THREE.OrthographicCamera(-GROUND, GROUND, GROUND, -GROUND, 0, 3);
    this.camera.up.set(0, 0, 1);
    this.near = new THREE.ShaderMaterial({
      side: THREE.DoubleSide,
      vertexShader: "varying float height; void main() { vec4 eye = modelViewMatrix * vec4(position, 1.0); height = -eye.z; gl_Position = projectionMatrix * eye; }",
      fragmentShader: `varying float height; void main() { gl_FragColor = vec4(exp(-max(height, 0.0) / ${REACH})); }`,
    });
    this.plane = new THREE.Mesh(new THREE.PlaneGeometry(2 * GROUND, 2 * GROUND).rotateX(-Math.PI / 2), new THREE.ShaderMaterial({
      uniforms: { below: { value: this.target.texture }, seen: { value: new THREE.Matrix4() } },
      transparent: true,
      depthWrite: false,
      toneMapped: false,
      vertexShader: `
        uniform mat4 seen; varying vec2 at;
        void main() {
          vec4 world = modelMatrix * vec4(position, 1.0);
          at = (seen * world).xy * 0.5 + 0.5;
          gl_Position = projectionMatrix * viewMatrix * world;
        }`,
      fragmentShader: `
        uniform sampler2D below; varying vec2 at;
        void main() {
          float dark = 0.0, all = 0.0;
          for (int x = -3; x <= 3; x++) for (int y = -3; y <= 3; y++) {
            float weight = exp(-float(x * x + y * y) / 5.0);
            dark += weight * textureLod(below, at + vec2(x, y) * 0.016, 2.5).r;
            all += weight;
          }
          gl_FragColor = vec4(0.0, 0.0, 0.0, ${SHADOW} * dark / all);
        }`,
    }));
    this.plane.renderOrder = -1;
  }

  cast(renderer, scene, group, parts) {
    group.updateMatrixWorld(true);
    const box = new THREE.Box3();
    for (const { mesh, collider } of parts) if (!collider) box.union(new THREE.Box3().setFromObject(mesh));
    this.plane.position.y = box.min.y - 0.002;
    this.camera.position.set(0, this.plane.position.y, 0);
    this.camera.lookAt(0, 10, 0);
    this.camera.updateMatrixWorld(true);
    this.plane.material.uniforms.seen.value.multiplyMatrices(this.camera.projectionMatrix, this.camera.matrixWorldInverse);
    const hidden = [this.plane, ...parts.flatMap(part => (part.collider ? [part.mesh] : [part.wires]))];
    const before = hidden.map(each => each.visible), environment = scene.environment;
    hidden.forEach(each => (each.visible = false));
    Object.assign(scene, { overrideMaterial: this.near, environment: null });
    renderer.setRenderTarget(this.target);
    renderer.clear();
    renderer.render(scene, this.camera);
    renderer.setRenderTarget(null);
    Object.assign(scene, { overrideMaterial: null, environment });
    hidden.forEach((each, i) => (each.visible = before[i]));
  }
}
