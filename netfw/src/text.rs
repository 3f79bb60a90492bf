//! Types that are written as text, in JSON as on the command line: what they need beside [`FromStr`] and
//! [`Display`] for `#[serde(try_from = "String", into = "String")]`.
//!
//! [`FromStr`]: std::str::FromStr
//! [`Display`]: std::fmt::Display

macro_rules! by_text {
    ($($t:ty),* $(,)?) => { $(
        impl TryFrom<String> for $t {
            type Error = <$t as std::str::FromStr>::Err;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$t> for String {
            fn from(value: $t) -> Self {
                value.to_string()
            }
        }
    )* };
}

pub(crate) use by_text;
