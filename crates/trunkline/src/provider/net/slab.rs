//! Names for what was handed out: a slot and its generation, so that a late settle never meets another message.

use crate::delivery::Token;

/// Values under tokens. Slots are used again, tokens never are.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Keeps a value and names it.
    pub(crate) fn insert(&mut self, value: T) -> Token {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[at as usize];
        slot.value = Some(value);
        token(slot.generation, at)
    }

    /// The value of a token that was not removed.
    pub(crate) fn get(&self, token: Token) -> Option<&T> {
        let (generation, at) = parts(token);
        self.slots.get(at).filter(|slot| slot.generation == generation)?.value.as_ref()
    }

    /// The same, to change it.
    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let (generation, at) = parts(token);
        self.slots.get_mut(at).filter(|slot| slot.generation == generation)?.value.as_mut()
    }

    /// Takes the value; from now on the token names nothing.
    pub(crate) fn remove(&mut self, token: Token) -> Option<T> {
        let (generation, at) = parts(token);
        let slot = self.slots.get_mut(at).filter(|slot| slot.generation == generation)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(at as u32);
        Some(value)
    }

    /// All that is kept.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Token, &T)> {
        self.slots.iter().zip(0..).filter_map(|(slot, at)| slot.value.as_ref().map(|value| (token(slot.generation, at), value)))
    }

    /// How many are kept.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

fn token(generation: u32, at: u32) -> Token {
    Token(u64::from(generation) << 32 | u64::from(at))
}

fn parts(token: Token) -> (u32, usize) {
    ((token.0 >> 32) as u32, token.0 as u32 as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_outlives_its_value_and_names_nothing_then() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert("a"), slab.insert("b"));
        assert_eq!((slab.remove(a), slab.remove(a), slab.len()), (Some("a"), None, 1));
        let c = slab.insert("c");
        assert_ne!(a, c);
        assert_eq!((slab.get(a), slab.get(b), slab.get(c)), (None, Some(&"b"), Some(&"c")));
        if let Some(value) = slab.get_mut(c) {
            *value = "d";
        }
        assert_eq!(slab.iter().map(|(_, value)| *value).collect::<Vec<_>>(), ["d", "b"]);
        assert_eq!(slab.get(Token(u64::MAX)), None);
    }
}
