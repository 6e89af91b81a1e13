// Reads a leaf and a slice of it through a mount: read.js FOLDER KEY SLICE, both float32 .npy files. Prints the leaf's sum and the
// slice's elements. No packages.
'use strict';
const fs = require('fs');

// The elements of a float32 .npy file.
function load(path) {
  const data = fs.readFileSync(path);
  if (data.toString('latin1', 0, 8) !== '\x93NUMPY\x01\x00') throw new Error(`${path}: not a .npy file`);
  const start = 10 + data.readUInt16LE(8);
  const header = data.toString('latin1', 10, start);
  if (!header.includes("'<f4'")) throw new Error(`${path}: not float32: ${header}`);
  const elements = new Float32Array((data.length - start) / 4);
  for (let i = 0; i < elements.length; i++) elements[i] = data.readFloatLE(start + 4 * i);
  return elements;
}

const [folder, key, slice] = process.argv.slice(2);
const leaf = load(`${folder}/${key}.npy`);
console.log(`${leaf.length} ${leaf.reduce((a, b) => a + b, 0)}`);
console.log(Array.from(load(`${folder}/${key}@${slice}.npy`)).join(' '));
