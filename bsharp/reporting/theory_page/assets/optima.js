// The mathematics of the page: optima, their figures and the flows towards them, in closed form wherever there is one.
// A world holds columns over its responses: logprob (nats), length (tokens), reward. Policies are log-probabilities.

const TIE = 1e-9; // relative; two values this close share the optimum of a linear objective
const EXPONENT_OF = { sum: () => 0, mean: () => 1, weighted_mean: (settings) => settings.rho };

function logSumExp(values) {
  let top = -Infinity;
  for (const value of values) top = Math.max(top, value);
  if (top === -Infinity) return top;
  let sum = 0;
  for (const value of values) sum += Math.exp(value - top);
  return top + Math.log(sum);
}

/** exp(weights) / Z as log-probabilities, with log Z. */
function gibbs(weights) {
  const logZ = logSumExp(weights);
  return { logp: weights.map((weight) => weight - logZ), logZ };
}

/** N(l_ref) = l_ref / T^rho of every response. */
function likelihoodOf(world, settings) {
  const exponent = EXPONENT_OF[settings.normalisation](settings);
  return world.logprob.map((logprob, at) => logprob / world.length[at] ** exponent);
}

/** Weights w (reward), s (N(l_ref)), c (KL to the base) and o (own log-likelihood) of every objective of the page. */
function objectivesOf(settings) {
  const { alpha, beta_inv: betaInv, c } = settings;
  const tempered = { w: 0, s: alpha - 1, c: 1, o: 0 };
  const tilted = betaInv > 0 ? { w: 1, s: (alpha - 1) / betaInv, c: 1 / betaInv, o: 0 } : tempered;
  return {
    base: null,
    sharpened: { w: 0, s: 1, c, o: 0 },
    tempered,
    tilted,
    task: { w: 1, s: 0, c, o: 0 },
    entropy: { w: 0, s: 0, c: 0, o: 1 },
  };
}

/** What a response is worth whatever the policy: v = w r + s N(l_ref) + c l_ref. */
function valuesOf(world, likelihood, { w, s, c }) {
  return world.logprob.map((logprob, at) => s * likelihood[at] + c * logprob + w * world.reward[at]);
}

/** The maximiser of E[v] + h H: exp(v / h) / Z, and for h = 0 the uniform distribution over the ties of max v, without a Z. */
function optimumOf(world, likelihood, objective) {
  if (objective === null) return { logp: world.logprob, logZ: 0 };
  const values = valuesOf(world, likelihood, objective);
  const h = objective.c - objective.o;
  if (h > 0) return gibbs(values.map((value) => value / h));
  const best = Math.max(...values);
  const width = TIE * Math.max(Math.abs(best), 1);
  return { logp: gibbs(values.map((value) => (value >= best - width ? 0 : -Infinity))).logp, logZ: null };
}

function mean(logp, values) {
  let sum = 0;
  for (let at = 0; at < logp.length; at++) if (logp[at] > -Infinity) sum += Math.exp(logp[at]) * values[at];
  return sum;
}

function covariance(logp, left, right) {
  const [meanLeft, meanRight] = [mean(logp, left), mean(logp, right)];
  return mean(logp, left.map((value, at) => (value - meanLeft) * (right[at] - meanRight)));
}

function correlation(logp, left, right) {
  const square = covariance(logp, left, left) * covariance(logp, right, right);
  return square > 0 ? covariance(logp, left, right) / Math.sqrt(square) : null;
}

/** Expected reward and length, entropy, KL to the base (nats), log Z (null for an argmax), and the chance that one of k draws is right. */
function figuresOf(world, { logp, logZ }, k) {
  const own = mean(logp, logp);
  const reward = mean(logp, world.reward);
  const success = Math.min(Math.max(reward, 0), 1);
  return {
    reward,
    length: mean(logp, world.length),
    entropy: Math.max(-own, 0),
    kl: Math.max(own - mean(logp, world.logprob), 0),
    log_z: logZ,
    pass_at_k: success === 1 ? 1 : -Math.expm1(k * Math.log1p(-success)),
  };
}

/** Every regime's optimum on the world at the settings. */
function solve(world, settings) {
  const likelihood = likelihoodOf(world, settings);
  const found = {};
  for (const [regime, objective] of Object.entries(objectivesOf(settings))) {
    if (regime !== "entropy") found[regime] = optimumOf(world, likelihood, objective);
  }
  return { likelihood, ...found };
}

/** p_alpha ~ pi_ref exp((alpha - 1) N(l_ref) + lambda r). */
function pathPoint(world, likelihood, alpha, lambda) {
  return gibbs(world.logprob.map((logprob, at) => logprob + (alpha - 1) * likelihood[at] + lambda * world.reward[at])).logp;
}

// -------------------------------------------------------------------------------------------- a nudge to the base

/** The best response by N(l_ref) and the next. */
function topTwo(likelihood) {
  const order = likelihood.map((_, at) => at).sort((left, right) => likelihood[right] - likelihood[left] || left - right);
  return order.slice(0, 2);
}

/** The world whose base gives `from` epsilon / 2 nats less and `to` as much more, normalised again. */
function nudged(world, from, to, epsilon) {
  const moved = world.logprob.slice();
  moved[from] -= epsilon / 2;
  moved[to] += epsilon / 2;
  return { ...world, logprob: gibbs(moved).logp };
}

/** The size of the nudge at which the best response changes, by bisection; null if that takes more than `most` nats. */
function flipAt(world, settings, most = 20) {
  const [best, next] = topTwo(likelihoodOf(world, settings));
  const flipped = (epsilon) => topTwo(likelihoodOf(nudged(world, best, next, epsilon), settings))[0] !== best;
  if (!flipped(most)) return null;
  let [low, high] = [0, most];
  for (let step = 0; step < 60; step++) {
    const middle = (low + high) / 2;
    if (flipped(middle)) high = middle;
    else low = middle;
  }
  return high;
}

// ------------------------------------------------------------------------------------------------------- the flows

/** Natural-gradient (replicator) flow in closed form: log pi_t = e^-ht log pi_0 + ((1 - e^-ht) / h) v + const. */
function naturalFlow(start, values, h, time) {
  const grown = Math.min(-h * time, 600);
  const gained = h === 0 ? time : Math.expm1(grown) / -h;
  const kept = Math.exp(grown);
  return gibbs(start.map((logp, at) => kept * logp + gained * values[at])).logp;
}

/** d logits / dt = pi (R - E[R]) with R = v - h log pi: the Euclidean gradient of a softmax over responses. */
function euclideanVelocity(logits, values, h) {
  const { logp } = gibbs(logits);
  const scores = values.map((value, at) => value - h * logp[at]);
  const average = mean(logp, scores);
  return logp.map((own, at) => Math.exp(own) * (scores[at] - average));
}

/** One step of Runge and Kutta's fourth order. */
function rungeKutta(logits, values, h, step) {
  const shifted = (slope, share) => logits.map((logit, at) => logit + share * step * slope[at]);
  const first = euclideanVelocity(logits, values, h);
  const second = euclideanVelocity(shifted(first, 0.5), values, h);
  const third = euclideanVelocity(shifted(second, 0.5), values, h);
  const fourth = euclideanVelocity(shifted(third, 1), values, h);
  return logits.map((logit, at) => logit + (step / 6) * (first[at] + 2 * second[at] + 2 * third[at] + fourth[at]));
}

/** The largest time in which nothing moves far: bounded by the speed of the policy and by stability. */
function safeStep(logits, values, h, tolerance) {
  const { logp } = gibbs(logits);
  const velocity = euclideanVelocity(logits, values, h);
  const average = mean(logp, velocity);
  let fastest = 1e-9;
  logp.forEach((own, at) => {
    const p = Math.exp(own);
    fastest = Math.max(fastest, Math.abs(velocity[at] - average), 4 * Math.abs(h) * p * (1 - p));
  });
  return tolerance / fastest;
}

/**
 * The path of the Euclidean flow until it hardly moves in as much time again, as policies, and where it is at `marks`.
 * With h = 0 it slows down like 1 / t, so that no fixed time would do.
 */
function euclideanPath(start, values, h, marks, tolerance = 0.15, most = 1500) {
  const [points, atMarks, ahead] = [[gibbs(start).logp], [], marks.slice()];
  let [logits, now] = [start, 0];
  for (let count = 0; count < most; count++) {
    let step = safeStep(logits, values, h, tolerance);
    const marked = ahead.length > 0 && now + step >= ahead[0];
    if (marked) step = ahead[0] - now;
    logits = rungeKutta(logits, values, h, step);
    now = marked ? ahead.shift() : now + step;
    const { logp } = gibbs(logits);
    points.push(logp);
    if (marked) atMarks.push(logp);
    const velocity = euclideanVelocity(logits, values, h);
    const average = mean(logp, velocity);
    const speed = logp.reduce((sum, own, at) => sum + Math.exp(own) * Math.abs(velocity[at] - average), 0);
    if (speed * Math.max(now, 1) < 1e-3) return { points, atMarks: [...atMarks, ...ahead.map(() => logp)] };
  }
  return { points, atMarks };
}

/** Policies of the Euclidean flow at each of the rising `times`. */
function euclideanFlow(start, values, h, times, tolerance = 0.05) {
  const found = [];
  let [logits, now] = [start, 0];
  for (const time of times) {
    while (now < time) {
      const step = Math.min(safeStep(logits, values, h, tolerance), time - now);
      logits = rungeKutta(logits, values, h, step);
      now = time - now - step < 1e-12 * time ? time : now + step;
    }
    found.push(gibbs(logits).logp);
  }
  return found;
}
