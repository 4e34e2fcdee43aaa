//! Randomness: counter-based, so that every backend draws the same noise with nothing stored.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011)
//! maps a counter of four words and a key of two to four random words. Everything is keyed by the
//! run's seed and a [`stream`], and counted by (update, user, element), never by position in a batch.

use crate::math::Real;

/// Streams: two uses of randomness never share one.
pub mod stream {
    /// Dropout of the input.
    pub const DROPOUT: u32 = 1;
    /// The latent sample.
    pub const LATENT: u32 = 2;
    /// The order of users in an epoch.
    pub const ORDER: u32 = 3;
    /// Initial weights.
    pub const WEIGHTS: u32 = 4;
    /// Which users are held out.
    pub const SPLIT: u32 = 5;
    /// Which events of a held-out user become targets.
    pub const TARGET: u32 = 6;
    /// Synthetic data.
    pub const SYNTHETIC: u32 = 7;
    /// Resampling, for intervals.
    pub const BOOTSTRAP: u32 = 8;
}

/// Philox4x32 with ten rounds.
#[inline(always)]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_lanes(counter.map(|word| [word]), key).map(|[word]| word)
}

/// The same for `N` counters side by side, whose rounds become vector instructions: word `w` of
/// counter `n` is `counters[w][n]`.
#[inline(always)]
fn philox_lanes<const N: usize>(mut counters: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let [c0, c1, c2, c3] = &mut counters;
        for n in 0..N {
            let a = u64::from(c0[n]) * 0xD251_1F53;
            let b = u64::from(c2[n]) * 0xCD9E_8D57;
            (c0[n], c1[n]) = ((b >> 32) as u32 ^ c1[n] ^ key[0], b as u32);
            (c2[n], c3[n]) = ((a >> 32) as u32 ^ c3[n] ^ key[1], a as u32);
        }
    }
    counters
}

/// The four words of a block: counter (update, user, block, high seed), key (low seed, stream).
#[inline(always)]
pub fn block(seed: u64, stream: u32, update: u32, user: u32, block: u32) -> [u32; 4] {
    philox([update, user, block, (seed >> 32) as u32], [seed as u32, stream])
}

/// The threshold of [`keeps`] for a probability: the draw keeps where a word is below it.
#[inline(always)]
pub fn threshold(keep: f32) -> u64 {
    (f64::from(keep) * 4_294_967_296.0) as u64
}

/// One Bernoulli draw per item: word `item % 4` of block `item / 4` is below the [`threshold`].
#[inline(always)]
pub fn keeps(seed: u64, stream: u32, update: u32, user: u32, item: u32, threshold: u64) -> bool {
    u64::from(block(seed, stream, update, user, item / 4)[item as usize % 4]) < threshold
}

/// The standard normal draws of elements `4 * at .. 4 * at + 4`: Box and Muller on the words (0, 1)
/// and (2, 3), of which the upper 24 bits are used, so that f32 and f64 start from the same numbers.
#[inline(always)]
pub fn normals<T: Real>(seed: u64, stream: u32, update: u32, user: u32, at: u32) -> [T; 4] {
    let [[block]] = [normals_lanes::<T, 1>(seed, stream, update, user, at)];
    block
}

/// The draws of `N` blocks of four from block `at` on.
#[inline(always)]
pub(crate) fn normals_lanes<T: Real, const N: usize>(
    seed: u64,
    stream: u32,
    update: u32,
    user: u32,
    at: u32,
) -> [[T; 4]; N] {
    let blocks = std::array::from_fn(|n| at.wrapping_add(n as u32));
    let words = philox_lanes([[update; N], [user; N], blocks, [(seed >> 32) as u32; N]], [seed as u32, stream]);
    let mut draws = [[T::zero(); 4]; N];
    for half in [0, 2] {
        for n in 0..N {
            let (a, b) = (words[half][n] >> 8, words[half + 1][n] >> 8);
            let radius = (T::of(-2.0) * T::share_of_24_bits(a + 1).ln_unit()).sqrt();
            let (sin, cos) = T::share_of_24_bits(b).sin_cos_turn();
            draws[n][half] = radius * cos;
            draws[n][half + 1] = radius * sin;
        }
    }
    draws
}

/// A sequential generator over one stream, for work on the host: orders, splits, initial weights.
#[derive(Clone, Debug)]
pub struct Generator {
    seed: u64,
    stream: u32,
    number: u32,
    at: u64,
    words: [u32; 4],
}

impl Generator {
    /// Sequence `number` of a stream: for instance one per epoch.
    pub fn new(seed: u64, stream: u32, number: u32) -> Self {
        Self { seed, stream, number, at: 0, words: [0; 4] }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        let word = (self.at % 4) as usize;
        if word == 0 {
            let n = self.at / 4;
            self.words = block(self.seed, self.stream, self.number, (n >> 32) as u32, n as u32);
        }
        self.at += 1;
        self.words[word]
    }

    /// Uniform in `0..bound`, without bias (Lemire 2019). Zero where `bound` is zero.
    pub fn below(&mut self, bound: u32) -> u32 {
        loop {
            let product = u64::from(self.next_u32()) * u64::from(bound);
            if product as u32 >= bound.wrapping_neg().checked_rem(bound).unwrap_or(0) {
                return (product >> 32) as u32;
            }
        }
    }

    /// Uniform in [0, 1), of 53 bits.
    pub fn unit(&mut self) -> f64 {
        let high = u64::from(self.next_u32()) << 32;
        ((high | u64::from(self.next_u32())) >> 11) as f64 / 9_007_199_254_740_992.0
    }

    /// A standard normal draw.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Fisher and Yates.
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last as u32 + 1) as usize);
        }
    }
}

/// The numbers `0..n` in random order.
pub fn permutation(seed: u64, stream: u32, number: u32, n: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    Generator::new(seed, stream, number).shuffle(&mut order);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_permutation_holds_every_number_once_and_depends_on_all_its_keys() {
        let mut seen = permutation(7, stream::ORDER, 3, 1000);
        assert_ne!(seen, permutation(8, stream::ORDER, 3, 1000));
        assert_ne!(seen, permutation(7, stream::SPLIT, 3, 1000));
        assert_ne!(seen, permutation(7, stream::ORDER, 4, 1000));
        assert_eq!(seen, permutation(7, stream::ORDER, 3, 1000));
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..1000));
    }

    #[test]
    fn keep_counts_follow_the_probability() {
        for keep in [0.0_f32, 0.1, 0.5, 0.9, 1.0] {
            let kept = (0..100_000).filter(|&i| keeps(1, stream::DROPOUT, 5, 2, i, threshold(keep))).count();
            let (n, p) = (100_000.0, f64::from(keep));
            assert!((kept as f64 - n * p).abs() <= 5.0 * (n * p * (1.0 - p)).sqrt(), "{kept} of 100000 kept at {keep}");
        }
    }

    #[test]
    fn normals_have_the_moments_of_the_normal_distribution() {
        let draws: Vec<f64> = (0..50_000).flat_map(|i| normals::<f64>(3, stream::LATENT, 1, 4, i)).collect();
        let n = draws.len() as f64;
        let moment = |p: i32| draws.iter().map(|x| x.powi(p)).sum::<f64>() / n;
        // Five standard errors of each sample moment.
        for (power, expected, deviation) in
            [(1, 0.0, 1.0), (2, 1.0, 2f64.sqrt()), (3, 0.0, 15f64.sqrt()), (4, 3.0, 96f64.sqrt())]
        {
            assert!(
                (moment(power) - expected).abs() < 5.0 * deviation / n.sqrt(),
                "moment {power} is {}",
                moment(power)
            );
        }
    }
}
