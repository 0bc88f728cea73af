//! Which instruction set a kernel runs on, found at run time so that one binary runs everywhere.
//!
//! A kernel's body is written once, in portable Rust that the compiler can vectorise (fixed lanes, no branches), and
//! the macro `multiversion!` compiles it for each instruction set. Rust never contracts `a * b + c` into a fused operation, so
//! such a body gives the same bits on each of them.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Portable,
    Avx2,
    Avx512,
    Avx512Bf16,
}

/// An instruction set that this machine has. Ordered: a larger one includes the smaller ones.
///
/// # Invariant
/// A value above [`Isa::PORTABLE`] is only ever made by [`Isa::detect`] and [`Isa::at_most`], which checked the machine.
/// Calling a function compiled for the instruction set of an `Isa` value is therefore sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

impl Isa {
    /// What every machine has.
    pub const PORTABLE: Isa = Isa(Level::Portable);

    /// The names [`Isa::at_most`] takes, weakest first.
    pub const NAMES: [&'static str; 4] = ["portable", "avx2", "avx512", "avx512_bf16"];

    /// The best instruction set of this machine.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                return Isa(Level::Avx512Bf16);
            }
            if avx512 {
                return Isa(Level::Avx512);
            }
            if avx2 {
                return Isa(Level::Avx2);
            }
        }
        Isa::PORTABLE
    }

    /// The best instruction set of this machine that is not above the one named; `None` if the name is unknown.
    /// The names are [`Isa::NAMES`].
    pub fn at_most(name: &str) -> Option<Self> {
        let limit = match name {
            "portable" => Level::Portable,
            "avx2" => Level::Avx2,
            "avx512" => Level::Avx512,
            "avx512_bf16" => Level::Avx512Bf16,
            _ => return None,
        };
        Some(Isa(limit.min(Isa::detect().0)))
    }

    /// Every instruction set of this machine, weakest first: tests run a kernel on each.
    pub fn all() -> Vec<Self> {
        let levels = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16];
        levels.into_iter().map(Isa).filter(|isa| *isa <= Isa::detect()).collect()
    }

    /// AVX2 and FMA may be used.
    pub fn has_avx2(self) -> bool {
        self.0 >= Level::Avx2
    }

    /// AVX-512 F, BW, DQ and VL may be used.
    pub fn has_avx512(self) -> bool {
        self.0 >= Level::Avx512
    }

    /// AVX-512 BF16 (`vdpbf16ps`) may be used.
    pub fn has_avx512_bf16(self) -> bool {
        self.0 >= Level::Avx512Bf16
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[self.0 as usize])
    }
}

/// Compiles one function body for every instruction set; the function made takes an [`Isa`] before its own arguments.
///
/// ```text
/// multiversion! {
///     /// Sum of a row.
///     fn sum<T: Element>(row: &[T]) -> f32 { ... }
/// }
/// let s = sum(cpu.isa, &row);
/// ```
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($t:ident: $bound:path),+>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "one argument more than the kernel's own")]
        $vis fn $name $(<$($t: $bound),+>)? (isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "the kernel's own arguments")]
            fn portable $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,f16c")]
            #[allow(clippy::too_many_arguments, reason = "the kernel's own arguments")]
            fn avx512 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { portable($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,f16c")]
            #[allow(clippy::too_many_arguments, reason = "the kernel's own arguments")]
            fn avx2 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { portable($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            if isa.has_avx512() {
                // SAFETY: an `Isa` with AVX-512 is only made on a machine that has it (and all such have the rest).
                return unsafe { avx512($($arg),*) };
            } else if isa.has_avx2() {
                // SAFETY: an `Isa` with AVX2 and FMA is only made on a machine that has them (and all such have the rest).
                return unsafe { avx2($($arg),*) };
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            portable($($arg),*)
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_never_raises_the_instruction_set_above_the_machine() {
        for name in Isa::NAMES {
            assert!(Isa::at_most(name).expect("a known name") <= Isa::detect());
        }
        assert_eq!(Isa::at_most("portable"), Some(Isa::PORTABLE));
        assert_eq!(Isa::at_most("sse9"), None);
    }

    #[test]
    fn one_body_gives_the_same_bits_on_every_instruction_set() {
        multiversion! { fn dot(a: &[f32], b: &[f32]) -> f32 { a.iter().zip(b).map(|(x, y)| x * y).sum() } }
        let a: Vec<f32> = (0..101).map(|i| (i as f32 * 0.7).sin()).collect();
        let want = dot(Isa::PORTABLE, &a, &a).to_bits();
        for isa in Isa::all() {
            assert_eq!(dot(isa, &a, &a).to_bits(), want, "{isa}");
        }
    }
}
