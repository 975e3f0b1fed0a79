//! Dyadic numbers, `m * 2^e` with an integer `m`: every finite float is one, and so is every sum, difference and
//! product of them. Sums are exact and therefore the same in any order; they are rounded once, when they are read.
//!
//! The integer lies in 128 bits as long as it can, which for values of like magnitude is always; beyond that it is as
//! long as it needs to be (at most some 2,200 bits for a sum of floats, twice that for their squares).
//!
//! Bytes of the canonical form: the exponent (2 bytes, big-endian, sign flipped), then the odd integer in as few
//! little-endian two's-complement bytes as hold it, their number before them; zero is the exponent 0 and no bytes. Equal
//! numbers have equal bytes.

use num_bigint::{BigInt, BigUint, Sign};

use crate::{Error, Result};

/// An exact number.
#[derive(Debug, Clone)]
pub struct Dyadic {
    integer: Integer,
    exponent: i32,
}

#[derive(Debug, Clone)]
enum Integer {
    Small(i128),
    Large(Box<BigInt>),
}

impl Default for Dyadic {
    fn default() -> Self {
        Self { integer: Integer::Small(0), exponent: 0 }
    }
}

impl PartialEq for Dyadic {
    fn eq(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        self.encode(&mut ours);
        other.encode(&mut theirs);
        ours == theirs
    }
}

/// A finite float as an integer of at most 53 bits, odd unless zero, and its exponent.
pub(crate) fn parts(value: f64) -> (i64, i32) {
    let bits = value.to_bits();
    let biased = i32::try_from(bits >> 52 & 0x7FF).unwrap_or(0);
    let fraction = (bits & ((1 << 52) - 1)).cast_signed();
    let (magnitude, exponent) = if biased == 0 { (fraction, -1074) } else { (fraction | 1 << 52, biased - 1075) };
    if magnitude == 0 {
        return (0, 0);
    }
    let zeros = magnitude.trailing_zeros();
    let odd = magnitude >> zeros;
    (if value.is_sign_negative() { -odd } else { odd }, exponent + zeros.cast_signed())
}

/// `high * 2^shift + low` where it fits.
fn aligned(high: i128, shift: u32, low: i128) -> Option<i128> {
    let moved = high.checked_shl(shift)?;
    if moved >> shift != high {
        return None;
    }
    moved.checked_add(low)
}

impl Dyadic {
    /// The number `integer * 2^exponent`.
    pub fn new(integer: i128, exponent: i32) -> Self {
        Self { integer: Integer::Small(integer), exponent }
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        match &self.integer {
            Integer::Small(integer) => *integer == 0,
            Integer::Large(integer) => integer.sign() == Sign::NoSign,
        }
    }

    /// The number, where it is an integer of 128 bits.
    pub fn integer(&self) -> Option<i128> {
        match &self.integer {
            Integer::Small(0) => Some(0),
            Integer::Small(integer) if self.exponent >= 0 => aligned(*integer, self.exponent.unsigned_abs(), 0),
            Integer::Small(integer) => {
                let less = self.exponent.unsigned_abs();
                (integer.trailing_zeros() >= less).then(|| integer >> less)
            }
            Integer::Large(integer) => {
                let whole = if self.exponent >= 0 {
                    integer.as_ref() << self.exponent.unsigned_abs()
                } else {
                    let less = u64::from(self.exponent.unsigned_abs());
                    if integer.trailing_zeros().is_some_and(|zeros| zeros < less) {
                        return None;
                    }
                    integer.as_ref() >> less
                };
                whole.try_into().ok()
            }
        }
    }

    /// Adds `integer * 2^exponent`.
    pub fn add(&mut self, integer: i128, exponent: i32) {
        if integer == 0 {
            return;
        }
        if let Integer::Small(held) = self.integer {
            if held == 0 {
                *self = Self::new(integer, exponent);
                return;
            }
            if let Some(sum) = add_small((held, self.exponent), (integer, exponent)) {
                (self.integer, self.exponent) = (Integer::Small(sum.0), sum.1);
                return;
            }
        }
        self.add_large(&BigInt::from(integer), exponent);
    }

    fn add_large(&mut self, integer: &BigInt, exponent: i32) {
        let held = self.to_big();
        let least = self.exponent.min(exponent);
        let sum = (held << shift(self.exponent, least)) + (integer << shift(exponent, least));
        *self = Self { integer: Integer::Large(Box::new(sum)), exponent: least };
    }

    /// Adds another number.
    pub fn merge(&mut self, other: &Self) {
        match &other.integer {
            Integer::Small(integer) => self.add(*integer, other.exponent),
            Integer::Large(integer) => self.add_large(integer, other.exponent),
        }
    }

    /// Takes another number away.
    pub fn subtract(&mut self, other: &Self) {
        match &other.integer {
            // The least integer has no negative of its own width.
            Integer::Small(integer) if *integer != i128::MIN => self.add(-integer, other.exponent),
            _ => {
                self.add_large(&-other.to_big(), other.exponent);
                self.shrink();
            }
        }
    }

    /// Goes back to 128 bits where they are enough.
    fn shrink(&mut self) {
        let Integer::Large(integer) = &self.integer else { return };
        let zeros = integer.trailing_zeros().unwrap_or(0);
        if let Ok(small) = i128::try_from(integer.as_ref() >> zeros) {
            *self = Self::new(small, self.exponent + i32::try_from(zeros).unwrap_or(0));
        }
    }

    fn to_big(&self) -> BigInt {
        match &self.integer {
            Integer::Small(integer) => BigInt::from(*integer),
            Integer::Large(integer) => integer.as_ref().clone(),
        }
    }

    /// The nearest float, ties to even; zero is positive, and what is too large is infinite.
    pub fn to_f64(&self) -> f64 {
        self.quotient(1)
    }

    /// The float nearest to this number over `divisor`, rounded once. A divisor of 0 counts as 1.
    pub fn quotient(&self, divisor: u64) -> f64 {
        let divisor = u128::from(divisor.max(1));
        let (negative, magnitude) = match &self.integer {
            Integer::Small(integer) => (*integer < 0, integer.unsigned_abs()),
            Integer::Large(integer) => {
                let rounded = quotient_of(integer.magnitude(), self.exponent, &BigUint::from(divisor));
                return signed(integer.sign() == Sign::Minus, rounded);
            }
        };
        if magnitude == 0 {
            return 0.0;
        }
        let moved = magnitude.leading_zeros();
        let wide = magnitude << moved;
        let rounded = rounded(wide / divisor, self.exponent - moved.cast_signed(), wide % divisor != 0);
        signed(negative, rounded)
    }

    /// `count * squares - sum^2`: the variance's numerator over `count^2`. Never negative for sums of the same values.
    pub(super) fn spread(count: u64, squares: &Self, sum: &Self) -> (BigUint, i32) {
        let least = squares.exponent.min(2 * sum.exponent);
        let total = sum.to_big();
        let spread = ((squares.to_big() * count) << shift(squares.exponent, least))
            - ((&total * &total) << shift(2 * sum.exponent, least));
        (spread.magnitude().clone(), least)
    }

    /// Appends the canonical form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let big;
        let (bytes, exponent) = match &self.integer {
            Integer::Small(0) => (Vec::new(), 0),
            Integer::Small(integer) => {
                let zeros = integer.trailing_zeros();
                (shortest(&(integer >> zeros).to_le_bytes()), self.exponent + zeros.cast_signed())
            }
            Integer::Large(integer) => match integer.trailing_zeros() {
                None => (Vec::new(), 0),
                Some(zeros) => {
                    big = integer.as_ref() >> zeros;
                    (big.to_signed_bytes_le(), self.exponent + i32::try_from(zeros).unwrap_or(i32::MAX))
                }
            },
        };
        let exponent = i16::try_from(exponent).unwrap_or(if exponent < 0 { i16::MIN } else { i16::MAX });
        out.extend_from_slice(&(exponent.cast_unsigned() ^ 1 << 15).to_be_bytes());
        out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(&bytes);
    }

    /// Reads a canonical form and moves past it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when the bytes end too early.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let mut read = Self::default();
        read.merge_encoded(bytes)?;
        Ok(read)
    }

    /// Adds a number in its canonical form, and moves past it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when the bytes end too early.
    pub fn merge_encoded(&mut self, bytes: &mut &[u8]) -> Result<()> {
        let cut = || Error::damaged("a stored sum is cut off").remedy("refresh the view again");
        let (head, rest) = bytes.split_at_checked(4).ok_or_else(cut)?;
        let exponent = i32::from((u16::from_be_bytes([head[0], head[1]]) ^ 1 << 15).cast_signed());
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let (digits, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        *bytes = rest;
        if length <= 8 {
            // Nearly always; the bytes are shifted in rather than copied, whose length is not known beforehand.
            let magnitude = digits.iter().rev().fold(0_u64, |whole, byte| whole << 8 | u64::from(*byte));
            let unused = 64 - 8 * u32::try_from(length).unwrap_or(8);
            let integer = magnitude.checked_shl(unused).map_or(0, |high| high.cast_signed() >> unused);
            self.add(i128::from(integer), exponent);
        } else if length <= 16 {
            let negative = digits.last().is_some_and(|byte| byte >> 7 == 1);
            let mut whole = [if negative { 0xFF } else { 0 }; 16];
            whole[..length].copy_from_slice(digits);
            self.add(i128::from_le_bytes(whole), exponent);
        } else {
            self.add_large(&BigInt::from_signed_bytes_le(digits), exponent);
        }
        Ok(())
    }
}

/// Adds where the sum fits; a common factor of two is taken out of the lower number first if that helps.
fn add_small(a: (i128, i32), b: (i128, i32)) -> Option<(i128, i32)> {
    let (high, low) = if a.1 >= b.1 { (a, b) } else { (b, a) };
    if let Some(sum) = aligned(high.0, high.1.abs_diff(low.1), low.0) {
        return Some((sum, low.1));
    }
    let zeros = low.0.trailing_zeros().min(high.1.abs_diff(low.1));
    let (low, exponent) = (low.0 >> zeros, low.1 + zeros.cast_signed());
    aligned(high.0, high.1.abs_diff(exponent), low).map(|sum| (sum, exponent))
}

fn shift(from: i32, to: i32) -> u32 {
    from.abs_diff(to)
}

/// Two's-complement bytes without those that only repeat the sign.
fn shortest(bytes: &[u8]) -> Vec<u8> {
    let mut length = bytes.len();
    while length > 1 {
        let (last, before) = (bytes[length - 1], bytes[length - 2]);
        if !(last == 0 && before >> 7 == 0 || last == 0xFF && before >> 7 == 1) {
            break;
        }
        length -= 1;
    }
    bytes[..length].to_vec()
}

fn signed(negative: bool, magnitude: f64) -> f64 {
    if negative { -magnitude } else { magnitude }
}

/// The float nearest to `numerator * 2^exponent / divisor`.
pub(super) fn quotient_of(numerator: &BigUint, exponent: i32, divisor: &BigUint) -> f64 {
    if numerator.bits() == 0 {
        return 0.0;
    }
    // Enough bits that the quotient has 66 or more, and what is left decides nothing but a tie.
    let moved = (divisor.bits() + 66).saturating_sub(numerator.bits());
    let wide = numerator << moved;
    let (whole, left) = (&wide / divisor, &wide % divisor);
    top(&whole, exponent - i32::try_from(moved).unwrap_or(i32::MAX), left.bits() != 0)
}

/// The float nearest to the square root of `numerator * 2^exponent / divisor`.
pub(super) fn root_of_quotient(numerator: &BigUint, exponent: i32, divisor: &BigUint) -> f64 {
    if numerator.bits() == 0 {
        return 0.0;
    }
    let mut moved = (divisor.bits() + 132).saturating_sub(numerator.bits());
    let mut lowered = exponent - i32::try_from(moved).unwrap_or(i32::MAX);
    if lowered % 2 != 0 {
        moved += 1;
        lowered -= 1;
    }
    let wide = numerator << moved;
    let (whole, left) = (&wide / divisor, &wide % divisor);
    let root = whole.sqrt();
    top(&root, lowered / 2, left.bits() != 0 || &root * &root != whole)
}

/// Rounds a long integer: its upper 128 bits, and whether anything follows them.
fn top(integer: &BigUint, exponent: i32, more: bool) -> f64 {
    let below = integer.bits().saturating_sub(128);
    let upper = integer >> below;
    let digits = upper.to_u64_digits();
    let digit = |index: usize| u128::from(digits.get(index).copied().unwrap_or(0));
    let more = more || integer.trailing_zeros().is_some_and(|zeros| zeros < below);
    rounded(digit(1) << 64 | digit(0), exponent + i32::try_from(below).unwrap_or(i32::MAX), more)
}

/// The float nearest to `magnitude * 2^exponent`, ties to even; `more` says that the true number is a little greater
/// (then the magnitude has 64 bits or more).
fn rounded(magnitude: u128, exponent: i32, more: bool) -> f64 {
    if magnitude == 0 {
        return 0.0;
    }
    let highest = exponent + 127 - magnitude.leading_zeros().cast_signed();
    let mut lowest = (highest - 52).max(-1074);
    let dropped = lowest - exponent;
    let mut kept = match u32::try_from(dropped) {
        Err(_) => magnitude << dropped.unsigned_abs(),
        Ok(0) => magnitude,
        Ok(dropped) if dropped > 128 => 0,
        Ok(dropped) => {
            let kept = magnitude.checked_shr(dropped).unwrap_or(0);
            let rest = magnitude - kept.checked_shl(dropped).unwrap_or(0);
            let half = 1_u128 << (dropped - 1);
            let up = rest > half || rest == half && (more || kept & 1 == 1);
            kept + u128::from(up)
        }
    };
    if kept == 1 << 53 {
        kept >>= 1;
        lowest += 1;
    }
    let fraction = u64::try_from(kept).unwrap_or(u64::MAX);
    if fraction < 1 << 52 {
        return f64::from_bits(fraction);
    }
    let biased = lowest + 1075;
    if biased >= 0x7FF {
        return f64::INFINITY;
    }
    f64::from_bits(u64::from(biased.unsigned_abs()) << 52 | fraction & ((1 << 52) - 1))
}

#[cfg(test)]
mod tests;
