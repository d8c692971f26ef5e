ALTER TABLE spaces DROP COLUMN branch;
ALTER TABLE spaces DROP COLUMN repository;
ALTER TABLE spaces DROP COLUMN driver;
ALTER TABLE templates DROP COLUMN start_limit;
ALTER TABLE templates DROP COLUMN container;
