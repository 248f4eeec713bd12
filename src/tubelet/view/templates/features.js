// Arithmetic on the tokens of one encoder and level: similarity, principal components, clusters, neighbors. Features are
// in chunks of whole time steps, in the page or fetched from the server that it came from.

const SAMPLE = 6000;  // tokens that components and cluster centers are computed from
const CHUNK = 16384;  // tokens of a chunk
const CACHE_BYTES = 64e6;  // of fetched features in memory
function random(seed) {  // mulberry32: the same numbers in each visit
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

class Features {
  // bytes: (N, width) int8, row by row, of the tokens from `begin` on. The length of a row has no meaning: a token is its direction.
  constructor(bytes, width, begin = 0) {
    this.width = width;
    this.begin = begin;
    this.values = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length);
    this.count = bytes.length / width;
    this.scale = new Float32Array(this.count);  // 1 / length
    for (let i = 0, at = 0; i < this.count; i++) {
      let sum = 0;
      for (let end = at + width; at < end; at++) sum += this.values[at] * this.values[at];
      this.scale[i] = sum ? 1 / Math.sqrt(sum) : 0;
    }
  }
  unit(token) {
    const { width, values, scale } = this, found = new Float32Array(width);
    const row = token - this.begin;
    for (let d = 0; d < width; d++) found[d] = values[row * width + d] * scale[row];
    return found;
  }
  mean(tokens) {  // direction of the mean
    const found = new Float32Array(this.width);
    for (const token of tokens) this.unit(token).forEach((value, d) => { found[d] += value; });
    const length = Math.hypot(...found) || 1;
    return found.map(value => value / length);
  }
  similarity(query, begin = this.begin, end = this.begin + this.count) {  // cosine of tokens begin to end with a direction
    const { width, values, scale } = this, found = new Float32Array(end - begin), first = begin - this.begin;
    for (let i = first, at = first * width; i < end - this.begin; i++, at += width) {
      let a = 0, b = 0, c = 0, e = 0, d = 0;
      for (; d + 3 < width; d += 4) {
        a += query[d] * values[at + d];
        b += query[d + 1] * values[at + d + 1];
        c += query[d + 2] * values[at + d + 2];
        e += query[d + 3] * values[at + d + 3];
      }
      for (; d < width; d++) a += query[d] * values[at + d];
      found[i - first] = (a + b + c + e) * scale[i];
    }
    return found;
  }
  project({ mean, axes }, token, axis) {
    const { width, values, scale } = this, row = axes[axis], factor = scale[token - this.begin];
    let sum = 0;
    for (let d = 0, at = (token - this.begin) * width; d < width; d++) sum += (values[at + d] * factor - mean[d]) * row[d];
    return sum;
  }
  assign(centers) {  // the nearest center of each token
    const best = this.similarity(centers[0]), found = new Uint8Array(this.count);
    for (let c = 1; c < centers.length; c++) {
      this.similarity(centers[c]).forEach((value, i) => { if (value > best[i]) { best[i] = value; found[i] = c; } });
    }
    return found;
  }
  // Pairs of tokens of two ranges that are each other's nearest neighbors, the most similar first.
  static mutualNeighbors(left, [leftBegin, leftEnd], right, [rightBegin, rightEnd]) {
    const rows = leftEnd - leftBegin, columns = rightEnd - rightBegin;
    const toRight = new Int32Array(rows), toLeft = new Int32Array(columns), best = new Float32Array(columns).fill(-2);
    const similarities = new Float32Array(rows);
    for (let i = 0; i < rows; i++) {
      const found = right.similarity(left.unit(leftBegin + i), rightBegin, rightEnd);
      let most = 0;
      for (let j = 0; j < columns; j++) {
        if (found[j] > found[most]) most = j;
        if (found[j] > best[j]) { best[j] = found[j]; toLeft[j] = i; }
      }
      toRight[i] = most;
      similarities[i] = found[most];
    }
    const pairs = [];
    for (let i = 0; i < rows; i++) if (toLeft[toRight[i]] === i) pairs.push([i, toRight[i], similarities[i]]);
    return pairs.sort((a, b) => b[2] - a[2]);
  }
}

class FeatureStore {
  // grids: [steps, rows, columns] of each file. bytes: all features, null if they are fetched from the address.
  constructor(grids, width, bytes, address) {
    Object.assign(this, { width, address, count: 0, chunks: [], recent: new Set(), served: !bytes, sampled: null });
    grids.forEach(([steps, rows, columns], file) => {
      const most = Math.max(1, Math.floor(CHUNK / (rows * columns)));
      for (let first = 0; first < steps; first += most) {
        const last = Math.min(steps, first + most), begin = this.count;
        this.count += (last - first) * rows * columns;
        this.chunks.push({ file, first, last, begin, end: this.count, features: null, request: null });
      }
    });
    if (bytes) for (const chunk of this.chunks) chunk.features = new Features(bytes.subarray(chunk.begin * width, chunk.end * width), width, chunk.begin);
  }
  chunkAt(token) {
    let low = 0, high = this.chunks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.chunks[middle].begin <= token) low = middle; else high = middle - 1;
    }
    return this.chunks[low];
  }
  at(token) {  // the features of the chunk of a token, null if they are not here
    const chunk = this.chunkAt(token);
    if (this.recent.delete(chunk)) this.recent.add(chunk);  // the last to be evicted
    return chunk.features;
  }
  load(chunk) {
    if (chunk.features) return Promise.resolve();
    chunk.request ??= this.fetch("features", { Range: `bytes=${chunk.begin * this.width}-${chunk.end * this.width - 1}` }).then(bytes => {
      chunk.features = new Features(bytes, this.width, chunk.begin);
      this.recent.add(chunk);
      const [oldest] = this.recent;
      if (this.recent.size * CHUNK * this.width > CACHE_BYTES) { oldest.features = null; this.recent.delete(oldest); }
    }).finally(() => { chunk.request = null; });
    return chunk.request;
  }
  async fetch(kind, headers) {
    const response = await fetch(`${kind}/${this.address}`, { headers });
    if (!response.ok) throw new Error(`the server answers ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  }
  async loadSample() {
    if (this.sampled) return;
    const found = new Features(await this.fetch("sample"), this.width);
    this.sampled = Array.from({ length: found.count }, (_, row) => found.unit(row));
  }
  get sample() {  // directions of evenly spaced tokens
    if (this.sampled) return this.sampled;
    this.sampled = [];
    for (let i = 0, stride = Math.max(1, this.count / SAMPLE); i < this.count; i += stride) this.sampled.push(this.at(Math.floor(i)).unit(Math.floor(i)));
    return this.sampled;
  }
}

// The first three principal components of tokens (directions), and the percentiles between which colors span.
function principalComponents(rows) {
  const width = rows[0].length;
  const mean = new Float64Array(width), matrix = Array.from({ length: width }, () => new Float64Array(width));
  for (const row of rows) for (let d = 0; d < width; d++) mean[d] += row[d] / rows.length;
  for (const row of rows) {
    for (let i = 0; i < width; i++) {
      const x = row[i] - mean[i], line = matrix[i];
      for (let j = i; j < width; j++) line[j] += x * (row[j] - mean[j]);
    }
  }
  for (let i = 0; i < width; i++) for (let j = 0; j < i; j++) matrix[i][j] = matrix[j][i];
  const axes = leadingEigenvectors(matrix, 3);
  const basis = { mean, axes, low: [], high: [] };
  for (let axis = 0; axis < 3; axis++) {
    const places = Float64Array.from(rows, row => row.reduce((sum, value, d) => sum + (value - mean[d]) * axes[axis][d], 0)).sort();
    basis.low.push(places[Math.floor(0.02 * (places.length - 1))]);
    basis.high.push(places[Math.ceil(0.98 * (places.length - 1))]);
  }
  return basis;
}
// Centers of k-means; k-means++ draws the first ones.
function kMeans(rows, k) {
  const draw = random(k), width = rows[0].length;
  let centers = [rows[Math.floor(draw() * rows.length)]];
  const far = new Float32Array(rows.length).fill(Infinity);
  while (centers.length < k) {
    let total = 0;
    const last = centers.at(-1);
    rows.forEach((row, i) => { total += far[i] = Math.min(far[i], 2 - 2 * dot(row, last)); });
    let rest = draw() * total, chosen = 0;
    while (chosen < rows.length - 1 && (rest -= far[chosen]) > 0) chosen++;
    centers.push(rows[chosen]);
  }
  for (let round = 0; round < 12; round++) {
    const sums = centers.map(() => new Float32Array(width));
    for (const row of rows) {
      const sum = sums[nearest(centers, row)];
      for (let d = 0; d < width; d++) sum[d] += row[d];
    }
    centers = sums.map((sum, c) => {
      const length = Math.hypot(...sum);
      return length ? sum.map(value => value / length) : centers[c];
    });
  }
  return centers;
}
function range(values, begin = 0, end = values.length) {  // the smallest and the largest value
  let low = Infinity, high = -Infinity;
  for (let i = begin; i < end; i++) {
    if (values[i] < low) low = values[i];
    if (values[i] > high) high = values[i];
  }
  return [low, high];
}
function dot(a, b) {
  let sum = 0;
  for (let d = 0; d < a.length; d++) sum += a[d] * b[d];
  return sum;
}
function nearest(centers, row) {
  let most = 0, best = -2;
  centers.forEach((center, c) => { const value = dot(center, row); if (value > best) { best = value; most = c; } });
  return most;
}
function leadingEigenvectors(matrix, count) {  // of a symmetric matrix, by orthogonal iteration; signs as in Python
  const width = matrix.length, draw = random(7);
  let axes = Array.from({ length: count }, () => Float64Array.from({ length: width }, () => draw() - 0.5));
  for (let round = 0; round < 300; round++) {
    const next = axes.map(axis => Float64Array.from(matrix, row => dot(row, axis)));
    for (let i = 0; i < count; i++) {
      for (let j = 0; j < i; j++) {
        const shared = dot(next[i], next[j]);
        for (let d = 0; d < width; d++) next[i][d] -= shared * next[j][d];
      }
      const length = Math.sqrt(dot(next[i], next[i])) || 1;
      for (let d = 0; d < width; d++) next[i][d] /= length;
    }
    const change = Math.max(...next.map((axis, i) => 1 - Math.abs(dot(axis, axes[i]))));
    axes = next;
    if (change < 1e-12) break;
  }
  return axes.map(axis => {
    const peak = axis.reduce((most, value) => Math.abs(value) > Math.abs(most) ? value : most, 0);
    return peak < 0 ? axis.map(value => -value) : axis;
  });
}
