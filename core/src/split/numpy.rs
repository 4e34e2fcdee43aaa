//! The legacy random numbers of numpy, for splits that were published as a seed.
//!
//! `RandomState(seed)` is the Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), seeded by
//! `init_genrand`; `permutation` shuffles from the end, with bounded integers by masked rejection.
//! numpy has frozen this stream for good.

const SIZE: usize = 624;

/// `numpy.random.RandomState`.
#[derive(Clone)]
pub struct RandomState {
    words: [u32; SIZE],
    at: usize,
}

impl RandomState {
    /// The state after `np.random.seed(seed)`.
    pub fn new(seed: u32) -> Self {
        let mut words = [seed; SIZE];
        for i in 1..SIZE {
            let last = words[i - 1];
            words[i] = (last ^ last >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { words, at: SIZE }
    }

    fn next_u32(&mut self) -> u32 {
        if self.at == SIZE {
            for i in 0..SIZE {
                let y = self.words[i] & 0x8000_0000 | self.words[(i + 1) % SIZE] & 0x7fff_ffff;
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.words[i] = self.words[(i + 397) % SIZE] ^ y >> 1 ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.words[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    /// Uniform in `0..=max`.
    fn interval(&mut self, max: u32) -> u32 {
        let mask = u32::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.next_u32() & mask;
            if value <= max {
                return value;
            }
        }
    }

    /// `permutation(n)`; its first `k` are `choice(n, k, replace=False)`.
    pub fn permutation(&mut self, n: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).collect();
        for last in (1..n).rev() {
            order.swap(last as usize, self.interval(last) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by numpy 2: `RandomState(seed).permutation(n)`.
    #[test]
    fn agrees_with_numpy() {
        assert_eq!(RandomState::new(98765).permutation(10), [8, 7, 1, 2, 0, 6, 9, 4, 3, 5]);
        assert_eq!(RandomState::new(0).permutation(7), [6, 2, 1, 3, 0, 5, 4]);
        assert_eq!(RandomState::new(4294967295).permutation(5), [4, 1, 0, 2, 3]);
        let mut state = RandomState::new(98765);
        let users = state.permutation(136_677);
        assert_eq!(users[..5], [104323, 11053, 111295, 50587, 126873]);
        assert_eq!(users[136_672..], [2057, 37808, 126893, 69107, 134933]);
        // The stream goes on where the last call left it.
        assert_eq!(state.permutation(6), [3, 2, 0, 5, 1, 4]);
        let mut state = RandomState::new(98765);
        assert_eq!(state.permutation(12)[..2], [11, 9]);
        assert_eq!(state.permutation(9)[..1], [4]);
        assert_eq!(RandomState::new(1).permutation(1), [0]);
        assert!(RandomState::new(1).permutation(0).is_empty());
    }
}
