//! Terminals in spaces, over a websocket.
