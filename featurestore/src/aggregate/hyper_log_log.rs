//! About how many distinct values there are: `HyperLogLog` with 4,096 registers, and Ertl's estimator (O. Ertl, "New
//! cardinality estimation algorithms for `HyperLogLog` sketches", 2017, algorithm 6), whose standard error is 1.6 % at any
//! size.
//!
//! Registers only ever rise, so merging in any order gives the same bytes: the number of registers that are not zero (2);
//! up to 512 of them each as register (2) and rank (1), else all ranks in order.

use twox_hash::XxHash64;

use super::Value;
use super::sorted::merge_sorted;
use crate::Result;

const BITS: u32 = 12;
const REGISTERS: usize = 1 << BITS;

/// Their number.
const REGISTERS_F64: f64 = 4_096.0;

/// The highest rank: as many bits as are left of a hash, and one more.
const TOP_RANK: usize = 64 - BITS as usize + 1;

/// The most registers that are kept as a list.
const MOST_LISTED: usize = 512;

/// The registers that are not zero.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Registers {
    /// Register and rank, in order of registers.
    Listed(Vec<(u16, u8)>),
    All(Box<[u8; REGISTERS]>),
}

/// A sketch of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HyperLogLog {
    registers: Registers,
}

impl Default for HyperLogLog {
    fn default() -> Self {
        Self { registers: Registers::Listed(Vec::new()) }
    }
}

impl HyperLogLog {
    /// Adds a value.
    pub fn add(&mut self, value: Value<'_>) {
        let hash = match value {
            Value::Text(text) => XxHash64::oneshot(0, text.as_bytes()),
            other => XxHash64::oneshot(1, &other.bits().to_le_bytes()),
        };
        let register = u16::try_from(hash >> (64 - BITS)).unwrap_or_default();
        // The bit that is set stops the count where the hash ends.
        let rank = (hash << BITS | 1 << (BITS - 1)).leading_zeros() + 1;
        self.raise(register, u8::try_from(rank).unwrap_or(u8::MAX));
    }

    fn raise(&mut self, register: u16, rank: u8) {
        match &mut self.registers {
            Registers::All(ranks) => {
                let held = &mut ranks[usize::from(register)];
                *held = rank.max(*held);
            }
            Registers::Listed(listed) => match listed.binary_search_by_key(&register, |(of, _)| *of) {
                Ok(place) => listed[place].1 = rank.max(listed[place].1),
                Err(place) if listed.len() < MOST_LISTED => listed.insert(place, (register, rank)),
                Err(_) => {
                    let mut ranks = all(listed);
                    ranks[usize::from(register)] = rank;
                    self.registers = Registers::All(ranks);
                }
            },
        }
    }

    fn each(&self, mut each: impl FnMut(u16, u8)) {
        match &self.registers {
            Registers::Listed(listed) => listed.iter().for_each(|(register, rank)| each(*register, *rank)),
            Registers::All(ranks) => {
                (0..).zip(ranks.iter()).filter(|(_, rank)| **rank > 0).for_each(|(of, rank)| each(of, *rank));
            }
        }
    }

    /// Adds another sketch.
    pub fn merge(&mut self, other: &Self) {
        match (&mut self.registers, &other.registers) {
            (Registers::All(ours), Registers::All(theirs)) => {
                for (held, rank) in ours.iter_mut().zip(theirs.iter()) {
                    *held = (*held).max(*rank);
                }
            }
            (Registers::All(ours), Registers::Listed(theirs)) => raise_all(ours, theirs),
            (Registers::Listed(ours), Registers::All(theirs)) => {
                let mut ranks = theirs.clone();
                raise_all(&mut ranks, ours);
                self.registers = Registers::All(ranks);
            }
            (Registers::Listed(ours), Registers::Listed(theirs)) => {
                merge_sorted(ours, theirs, |one, new| one.0.cmp(&new.0), |held, new| held.1 = held.1.max(new.1));
                if ours.len() > MOST_LISTED {
                    self.registers = Registers::All(all(ours));
                }
            }
        }
    }

    /// About how many distinct values were added.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rounded, positive estimate")]
    pub fn estimate(&self) -> u64 {
        let mut counts = [0_u32; TOP_RANK + 1];
        let mut held = 0;
        self.each(|_, rank| {
            counts[usize::from(rank).min(TOP_RANK)] += 1;
            held += 1;
        });
        let registers = REGISTERS_F64;
        let empty = registers - f64::from(held);
        let mut z = registers * tau(1.0 - f64::from(counts[TOP_RANK]) / registers);
        for count in counts[1..TOP_RANK].iter().rev() {
            z = 0.5 * (z + f64::from(*count));
        }
        z += registers * sigma(empty / registers);
        (0.5 / std::f64::consts::LN_2 * registers * registers / z).round() as u64
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.registers {
            Registers::Listed(listed) => {
                out.extend_from_slice(&u16::try_from(listed.len()).unwrap_or(u16::MAX).to_be_bytes());
                for (register, rank) in listed {
                    out.extend_from_slice(&register.to_be_bytes());
                    out.push(*rank);
                }
            }
            Registers::All(ranks) => {
                out.extend_from_slice(&u16::MAX.to_be_bytes());
                out.extend_from_slice(ranks.as_slice());
            }
        }
    }

    /// Reads its bytes and moves past them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when they end too early.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let listed = u16::from_be_bytes(super::read_array(bytes)?);
        if listed == u16::MAX {
            return Ok(Self { registers: Registers::All(Box::new(super::read_array(bytes)?)) });
        }
        let one = |_| {
            let [high, low, rank] = super::read_array(bytes)?;
            let register = u16::from_be_bytes([high, low]);
            if usize::from(register) < REGISTERS { Ok((register, rank)) } else { Err(super::value::cut()) }
        };
        Ok(Self { registers: Registers::Listed((0..listed).map(one).collect::<Result<_>>()?) })
    }
}

fn raise_all(ranks: &mut [u8; REGISTERS], listed: &[(u16, u8)]) {
    for (register, rank) in listed {
        let held = &mut ranks[usize::from(*register)];
        *held = (*held).max(*rank);
    }
}

/// All registers, of a list of some.
fn all(listed: &[(u16, u8)]) -> Box<[u8; REGISTERS]> {
    let mut ranks = Box::new([0; REGISTERS]);
    raise_all(&mut ranks, listed);
    ranks
}

/// Ertl's correction for registers that are still empty.
#[expect(clippy::float_cmp, reason = "the series is summed until it does not change any more")]
fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

/// Ertl's correction for registers that are full.
#[expect(clippy::float_cmp, reason = "the series is summed until it does not change any more")]
fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sketch(values: impl IntoIterator<Item = i64>) -> HyperLogLog {
        let mut sketch = HyperLogLog::default();
        values.into_iter().for_each(|value| sketch.add(Value::Signed(value)));
        sketch
    }

    #[test]
    fn estimates_are_within_a_few_standard_errors() {
        assert_eq!(HyperLogLog::default().estimate(), 0);
        for count in [1_i64, 2, 10, 100, 1_000, 5_000, 20_000, 300_000] {
            for start in [0, 1 << 40, -5_000_000] {
                let estimate = sketch(start..start + count).estimate().cast_signed();
                let off = (estimate - count).abs();
                assert!(off * 20 <= count, "{count} from {start}: {estimate}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_laws_hold(a in 0_i64..3_000, b in 0_i64..3_000, from in 0_i64..3_000) {
            let mut merged = sketch(0..a);
            merged.merge(&sketch(from..from + b));
            prop_assert_eq!(&merged, &sketch((from..from + b).chain(0..a)));
            let mut bytes = Vec::new();
            merged.encode(&mut bytes);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(&HyperLogLog::decode(&mut rest).expect("own bytes"), &merged);
            prop_assert!(rest.is_empty() && HyperLogLog::decode(&mut &bytes[..bytes.len() - 1]).is_err());
        }
    }
}
