//! Numbers that both sides know by name.

/// An enum whose numbers lie in maps and whose names are read by people: both are part of the contract,
/// and neither is ever used for something else. The doc comments are what people are told.
macro_rules! named {
    (
        $(#[$attribute:meta])*
        pub enum $Name:ident: $repr:ident {
            $($(#[doc = $doc:literal])* $variant:ident = $number:literal, $name:literal;)*
        }
    ) => {
        $(#[$attribute])*
        #[repr($repr)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $Name {
            $($(#[doc = $doc])* $variant = $number,)*
        }

        impl $Name {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in counters and in JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// A sentence for people.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*).trim_ascii(),)* }
            }

            /// By its number; None: of another version.
            pub const fn of(number: $repr) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

pub(crate) use named;
