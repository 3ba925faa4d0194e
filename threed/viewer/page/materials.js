// What the model is drawn with: a material for each map, all made at once, and wires over it. Maps of data show the
// file's own bytes.

import * as THREE from "three";

const CLAY = 0xb9b4ab;

export const MAPS = {
  colour: "Colour", normal: "Normal map", roughness: "Roughness", metalness: "Metal", occlusion: "Occlusion",
  emission: "Glow", directions: "Normals", clay: "Clay",
};
// Where each map lies in a material of three.js, and which channel of it counts; -1 is all of them.
export const TEXTURES = {
  colour: ["map", -1], normal: ["normalMap", -1], roughness: ["roughnessMap", 1], metalness: ["metalnessMap", 2],
  occlusion: ["aoMap", 0], emission: ["emissiveMap", -1],
};

// A part with a material for each of the maps, and wires over it.
export function dressed({ mesh, collider }) {
  if (collider) {
    mesh.material = new THREE.MeshBasicMaterial({ color: 0x7a8cff, transparent: true, opacity: 0.28, depthWrite: false, toneMapped: false });
    mesh.add(wires(mesh.geometry, 0x7a8cff, 0.5));
    return { mesh, collider, own: mesh.material, materials: { collider: mesh.material } };
  }
  const own = mesh.material, overlay = wires(mesh.geometry, 0x000000, 0.3);
  mesh.add(overlay);
  const of = make => (Array.isArray(own) ? own.map(make) : make(own));
  const materials = { lit: of(pushed), colour: of(unlit), clay: of(clay), directions: of(directions) };
  for (const [name, [property, channel]] of Object.entries(TEXTURES)) {
    if (name !== "colour" && [own].flat().some(material => material[property])) {
      materials[name] = of(material => data(material, property, channel));
    }
  }
  return { mesh, collider, own, materials, wires: overlay };
}

// Drawn a little farther away than its wires.
function pushed(material) {
  return Object.assign(material, { polygonOffset: true, polygonOffsetFactor: 1, polygonOffsetUnits: 1 });
}

function kept({ side, alphaTest, transparent, opacity, alphaMap }) {
  return { side, alphaTest, transparent, opacity, alphaMap };
}

function unlit(material) {
  const { map, color, vertexColors } = material;
  return pushed(new THREE.MeshBasicMaterial({ ...kept(material), map, color, vertexColors, toneMapped: false }));
}

function clay({ side, flatShading }) {
  return pushed(new THREE.MeshStandardMaterial({ color: CLAY, roughness: 0.85, side, flatShading }));
}

function directions({ side }) {
  return pushed(new THREE.MeshNormalMaterial({ side, toneMapped: false }));
}

function wires(geometry, color, opacity) {
  const material = new THREE.MeshBasicMaterial({ color, wireframe: true, transparent: true, opacity, depthWrite: false, toneMapped: false });
  return new THREE.Mesh(geometry, material);
}

// A map of data, a channel of it in grey or all of it, as its bytes are.
function data(material, property, channel) {
  const texture = material[property];
  if (!texture) return pushed(new THREE.MeshBasicMaterial({ color: 0x808080, side: material.side, toneMapped: false }));
  texture.updateMatrix();
  const uv = texture.channel ? `uv${texture.channel}` : "uv";
  const value = channel < 0 ? "texel.rgb" : `vec3(texel[${channel}])`;
  const decoded = texture.colorSpace === THREE.SRGBColorSpace ? "#include <colorspace_fragment>" : "";
  return pushed(new THREE.ShaderMaterial({
    uniforms: { picture: { value: texture }, place: { value: texture.matrix } },
    side: material.side,
    toneMapped: false,
    vertexShader: `
      ${uv === "uv" ? "" : `attribute vec2 ${uv};`}
      uniform mat3 place; varying vec2 at;
      void main() {
        at = (place * vec3(${uv}, 1.0)).xy;
        gl_Position = projectionMatrix * modelViewMatrix * vec4(position, 1.0);
      }`,
    fragmentShader: `
      uniform sampler2D picture; varying vec2 at;
      void main() { vec4 texel = texture2D(picture, at); gl_FragColor = vec4(${value}, 1.0); ${decoded} }`,
  }));
}
