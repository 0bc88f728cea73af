//! Philox4x32-10: random numbers as a pure function of a key and a counter.
//!
//! Source: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3. Nothing is
//! carried from one number to the next, so any thread of any rank can draw any number.

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
/// Added to the key each round: the golden ratio and sqrt(3) - 1.
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: u32 = 10;
/// The bits of a word in a u64.
const LOW: u64 = 0xffff_ffff;

/// Counters that [`words`] works on at once.
const COUNTERS: usize = 16;
/// Numbers that one call of [`words`] gives.
pub const WORDS: usize = 4 * COUNTERS;

/// Four random words.
pub fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    lanes(key, counter.map(|word| [word])).map(|[word]| word)
}

/// [`WORDS`] random words: those of the counters `[c0, c1, first + i, c3]` for `i` = 0, ..., 15 (wrapping), in order.
///
/// Word `w` of counter `i` is at `4 i + w`.
#[inline(always)]
pub fn words(key: [u32; 2], c0: u32, c1: u32, first: u32, c3: u32) -> [u32; WORDS] {
    let mut counters = [[c0; COUNTERS], [c1; COUNTERS], [first; COUNTERS], [c3; COUNTERS]];
    for (i, counter) in counters[2].iter_mut().enumerate() {
        *counter = counter.wrapping_add(i as u32);
    }
    let drawn = lanes(key, counters);
    let mut words = [0; WORDS];
    for (i, four) in words.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *four = [drawn[0][i], drawn[1][i], drawn[2][i], drawn[3][i]];
    }
    words
}

/// The ten rounds on `N` counters side by side, `[word][counter]` in and out. Words travel as u64 below 2^32: that is
/// what vector units multiply.
#[inline(always)]
pub(crate) fn lanes<const N: usize>(mut key: [u32; 2], c: [[u32; N]; 4]) -> [[u32; N]; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = c.map(|words| words.map(u64::from));
    for _ in 0..ROUNDS {
        for lane in 0..N {
            let p0 = u64::from(MULTIPLIERS[0]) * (c0[lane] & LOW);
            let p1 = u64::from(MULTIPLIERS[1]) * (c2[lane] & LOW);
            c0[lane] = (p1 >> 32) ^ c1[lane] ^ u64::from(key[0]);
            c1[lane] = p1 & LOW;
            c2[lane] = (p0 >> 32) ^ c3[lane] ^ u64::from(key[1]);
            c3[lane] = p0 & LOW;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    [c0, c1, c2, c3].map(|words| words.map(|word| word as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::multiversion;
    use crate::testing::assert_same_bits;

    #[test]
    fn the_known_answers_of_the_paper_s_library_come_out() {
        assert_eq!(philox4x32([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 2], [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn many_words_at_once_are_those_of_one_counter_after_another() {
        let (key, first) = ([7, 9], u32::MAX - 3);
        let got = words(key, 1, 2, first, 3);
        for i in 0..COUNTERS {
            let want = philox4x32(key, [1, 2, first.wrapping_add(i as u32), 3]);
            assert_eq!(got[4 * i..4 * i + 4], want, "counter {i}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_words() {
        multiversion! { fn draw(first: u32) -> [u32; WORDS] { words([1, 2], 3, 4, first, 5) } }
        assert_same_bits(|cpu| draw(cpu.isa, 6).map(|word| word as u16 as f32).to_vec());
    }
}
