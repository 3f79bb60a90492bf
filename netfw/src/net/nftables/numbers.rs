//! Numbers of linux/netfilter/nf_tables.h.

// enum nft_table_attributes, nft_table_flags
pub const TABLE_NAME: u16 = 1;
pub const TABLE_FLAGS: u16 = 2;
pub const DORMANT: u32 = 1;
// enum nft_chain_attributes, nft_hook_attributes
pub const CHAIN_TABLE: u16 = 1;
pub const CHAIN_NAME: u16 = 3;
pub const CHAIN_HOOK: u16 = 4;
pub const CHAIN_POLICY: u16 = 5;
pub const HOOK_NUMBER: u16 = 1;
// enum nft_rule_attributes, nft_list_attributes, nft_expr_attributes
pub const RULE_TABLE: u16 = 1;
pub const RULE_CHAIN: u16 = 2;
pub const RULE_EXPRESSIONS: u16 = 4;
pub const EXPR_NAME: u16 = 1;
pub const EXPR_DATA: u16 = 2;
// Of expressions: what is at their beginning, and so on.
pub const META_KEY: u16 = 2;
pub const META_SOURCE: u16 = 3;
pub const PAYLOAD_BASE: u16 = 2;
pub const PAYLOAD_OFFSET: u16 = 3;
pub const PAYLOAD_LEN: u16 = 4;
pub const PAYLOAD_SOURCE: u16 = 5;
pub const CT_KEY: u16 = 2;
pub const CT_SOURCE: u16 = 4;
pub const FIB_RESULT: u16 = 2;
pub const FIB_FLAGS: u16 = 3;
pub const BITWISE_MASK: u16 = 4;
pub const LOOKUP_DESTINATION: u16 = 3;
pub const CMP_OP: u16 = 2;
pub const CMP_DATA: u16 = 3;
pub const RANGE_OP: u16 = 2;
pub const RANGE_FROM: u16 = 3;
pub const RANGE_TO: u16 = 4;
pub const NAT_TYPE: u16 = 1;
pub const IMMEDIATE_DATA: u16 = 2;
pub const DATA_VALUE: u16 = 1;
pub const DATA_VERDICT: u16 = 2;
pub const VERDICT_CODE: u16 = 1;
pub const VERDICT_CHAIN: u16 = 2;
pub const XT_NAME: u16 = 1;
pub const XT_INFO: u16 = 3;

// enum nft_meta_keys
pub const META_PROTOCOL: u32 = 1;
pub const META_IIF: u32 = 4;
pub const META_OIF: u32 = 5;
pub const META_IIFNAME: u32 = 6;
pub const META_OIFNAME: u32 = 7;
pub const META_NFPROTO: u32 = 15;
pub const META_L4PROTO: u32 = 16;
pub const NFPROTO_IPV6: u8 = 10;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
// enum nft_payload_bases
pub const NETWORK_HEADER: u32 = 1;
pub const TRANSPORT_HEADER: u32 = 2;
// enum nft_ct_keys, nft_fib_result, nft_fib_flags, and a type of route.
pub const CT_STATE: u32 = 0;
pub const FIB_TYPE: u32 = 3;
pub const FIB_DESTINATION: u32 = 2;
pub const RTN_LOCAL: u32 = 2;
/// `NFT_REG_VERDICT`: what a map says is done.
pub const VERDICT_REGISTER: u32 = 0;
// enum nft_cmp_ops; the first two are those of ranges, too.
pub const EQUAL: u32 = 0;
pub const NOT_EQUAL: u32 = 1;
/// The ends of a range, as nft writes it.
pub const AT_MOST: u32 = 3;
pub const AT_LEAST: u32 = 5;
/// `NFT_NAT_DNAT`
pub const DNAT: u32 = 1;
// Verdicts.
pub const NF_DROP: i32 = 0;
pub const NF_ACCEPT: i32 = 1;
pub const NFT_CONTINUE: i32 = -1;
pub const NFT_JUMP: i32 = -3;
pub const NFT_GOTO: i32 = -4;
pub const NFT_RETURN: i32 = -5;

/// `struct xt_addrtype_info_v1` (linux/netfilter/xt_addrtype.h) of `--dst-type LOCAL`: the source's types, the
/// destination's, flags.
pub const LOCAL_DESTINATION: [[u8; 2]; 4] = [[0; 2], (1u16 << 2).to_ne_bytes(), [0; 2], [0; 2]];
