#[derive(Debug, Clone, Default)] pub struct Query { pub product: Option<String>, pub env: Option<String> }
#[derive(Debug, Clone)] pub struct Page;
