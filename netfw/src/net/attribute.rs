//! Attributes of netlink messages (linux/netlink.h): length with header and type (u16, host order), value,
//! and padding to 4 bytes.

/// Of an attribute's type, what says that others are in it and in which order its bytes are.
const FLAGS: u16 = 1 << 15 | 1 << 14;

/// The attributes in some bytes, up to where these make no sense.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The value of the first of a type.
    pub fn get(mut self, wanted: u16) -> Option<&'a [u8]> {
        self.find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    }

    /// The attributes in the first of a type; none where there is none.
    pub fn within(self, wanted: u16) -> Self {
        Self(self.get(wanted).unwrap_or_default())
    }

    /// A number in network byte order, as netfilter has them.
    pub fn be32(self, wanted: u16) -> Option<u32> {
        let bytes = self.get(wanted)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    /// A number in host order, as others have them.
    pub fn ne32(self, wanted: u16) -> Option<u32> {
        let bytes = self.get(wanted)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    }

    /// A string, without its NUL.
    pub fn text(self, wanted: u16) -> Option<String> {
        let value = self.get(wanted)?;
        let end = value.iter().position(|byte| *byte == 0);
        let text = &value[..end.unwrap_or(value.len())];
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[l0, l1, t0, t1], _) = self.0.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([t0, t1]) & !FLAGS, value))
    }
}

/// Messages for tests of who reads them.
#[cfg(test)]
pub mod made {
    /// An attribute with its padding.
    pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = 4 + value.len();
        let mut bytes = (length as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    pub fn text(kind: u16, text: &str) -> Vec<u8> {
        attribute(kind, format!("{text}\0").as_bytes())
    }

    pub fn be32(kind: u16, number: u32) -> Vec<u8> {
        attribute(kind, &number.to_be_bytes())
    }

    pub fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
        attribute(kind | 1 << 15, &parts.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::{made::*, *};

    #[test]
    fn attributes_are_found() {
        let bytes = [
            attribute(8, &[7]),
            nested(11, &[be32(1, 80), text(2, "ingress")]),
        ];
        let bytes = bytes.concat();
        let all = Attributes::of(&bytes);
        assert_eq!(all.get(8), Some(&[7][..]));
        assert_eq!(all.get(9), None);
        assert_eq!(all.within(11).be32(1), Some(80));
        assert_eq!(all.within(11).text(2).as_deref(), Some("ingress"));
        assert_eq!(all.within(9).count(), 0);
        assert_eq!(all.ne32(8), None, "too short");
    }

    #[test]
    fn what_is_cut_short_ends_the_list() {
        let bytes = [attribute(1, &[1, 2, 3]), attribute(2, &[4])].concat();
        for end in 0..bytes.len() {
            let found = Attributes::of(&bytes[..end]).count();
            assert!(found <= 1 + usize::from(end >= 13), "{end}: {found}");
        }
        // A length that is shorter than itself.
        assert_eq!(Attributes::of(&[3, 0, 1, 0]).count(), 0);
    }
}
